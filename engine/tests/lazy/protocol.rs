//! Restorers that misbehave, and owners that give up.

use crate::harness::{
    BASE, PAGES, Pace, Source, TASK, content, end_of, options, outcome, plan, start_peer,
};
use crate::peer::{connect, finish, send_fd};
use blip_engine::lazy::{LazyError, LazyEvent, LazyHandle, LazyPlan, LazyServer, TaskPlan};
use blip_engine::sys::uffd_peer::{Arena, CRIU_FEATURES, open};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Stage {
    dir: tempfile::TempDir,
    handle: LazyHandle,
    events: Arc<Mutex<Vec<LazyEvent>>>,
}

fn serve(plan: LazyPlan) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let server = LazyServer::listen(dir.path()).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    let source = Arc::new(Source::default());
    let handle = server
        .serve(plan, source, options(Pace::Normal), move |e| heard.lock().unwrap().push(e))
        .unwrap();
    Stage { dir, handle, events }
}

/// What becomes of a server whose restorer does this and then hangs up.
fn after(restorer: impl FnOnce(UnixStream)) -> Arc<LazyError> {
    let stage = serve(plan());
    restorer(connect(stage.dir.path()));
    let error = end_of(stage.handle).unwrap_err();
    let events = stage.events.lock().unwrap();
    assert!(matches!(events.last(), Some(LazyEvent::Failed(_))), "{events:?}");
    error
}

fn say(stream: &mut UnixStream, word: i32) {
    stream.write_all(&word.to_ne_bytes()).unwrap();
}

fn is_protocol(error: &LazyError) -> bool {
    matches!(error, LazyError::Protocol { .. })
}

#[test]
fn a_restorer_may_not_say_just_anything() {
    for word in [0, i32::MIN, i32::MAX, 5 << 20, -(5 << 20), 0x4654_5352] {
        let error = after(|mut stream| say(&mut stream, word));
        assert!(is_protocol(&error), "{word:#x}: {error}");
    }
    let error = after(|mut stream| stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap());
    assert!(is_protocol(&error), "{error}");
}

#[test]
fn hanging_up_early_is_an_error_at_every_byte() {
    let error = after(drop);
    assert!(matches!(*error, LazyError::RestorerLeft), "{error}");
    for n in 1..4 {
        let error = after(|mut stream| stream.write_all(&7i32.to_ne_bytes()[..n]).unwrap());
        assert!(is_protocol(&error), "{error}");
    }
    let error = after(|mut stream| say(&mut stream, 7));
    assert!(is_protocol(&error), "{error}");
}

#[test]
fn a_descriptor_must_come_and_be_a_userfaultfd() {
    let error = after(|mut stream| {
        say(&mut stream, 7);
        stream.write_all(b"*").unwrap();
    });
    assert!(is_protocol(&error), "no descriptor: {error}");
    let error = after(|mut stream| {
        say(&mut stream, 7);
        send_fd(&stream, &std::fs::File::open("/dev/null").unwrap());
    });
    assert!(is_protocol(&error), "another descriptor: {error}");
    let error = after(|stream| send_fd(&stream, &std::fs::File::open("/dev/null").unwrap()));
    assert!(is_protocol(&error), "a descriptor first: {error}");
}

#[test]
fn finishing_without_handing_over_is_an_error() {
    let error = after(finish);
    assert!(matches!(*error, LazyError::NotHandedOver { space: TASK }), "{error}");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn only_tasks_of_the_dump_are_taken_and_only_once() {
    let error = after(|mut stream| {
        say(&mut stream, 8);
        send_fd(&stream, &open(CRIU_FEATURES).unwrap());
    });
    assert!(is_protocol(&error), "an unknown task: {error}");
    let error = after(|mut stream| {
        for _ in 0..2 {
            say(&mut stream, 7);
            send_fd(&stream, &open(CRIU_FEATURES).unwrap());
        }
    });
    assert!(is_protocol(&error), "a task twice: {error}");
}

#[test]
fn a_dump_without_lazy_memory_needs_no_memory_handed_over() {
    let stage = serve(LazyPlan::new([(TASK, TaskPlan::default())]));
    let mut stream = connect(stage.dir.path());
    say(&mut stream, -3);
    finish(stream);
    end_of(stage.handle).unwrap();
}

#[test]
fn the_socket_is_for_its_owner_and_replaces_a_stale_one() {
    // Longer than the address of a unix socket may be.
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    for _ in 0..2 {
        let _server = LazyServer::listen(&deep).unwrap();
        let mode = std::fs::metadata(deep.join("lazy-pages.socket")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let error = LazyServer::listen(Path::new("/nowhere/at/all")).map(drop).unwrap_err();
    assert!(matches!(error, LazyError::Listen { .. }), "{error}");
}

/// Words and descriptors may come in pieces, with pauses.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn words_may_come_in_pieces() {
    let place = BASE + (64 << 30);
    let page = place / 4096;
    // This process restores itself, with memory of its own.
    let run = blip_transport::page::PageRun::new(page, 4);
    let task = TaskPlan { missing: vec![run], wiped_on_fork: Vec::new() };
    let plan = LazyPlan::new([(TASK, task)]);
    let dir = tempfile::tempdir().unwrap();
    let server = LazyServer::listen(dir.path()).unwrap();
    let source = Arc::new(Source::default());
    let handle = server.serve(plan, source, options(Pace::Normal), |_| ()).unwrap();
    let mut stream = connect(dir.path());
    let uffd = open(CRIU_FEATURES).unwrap();
    let pause = || std::thread::sleep(Duration::from_millis(2));
    for byte in 7i32.to_ne_bytes() {
        stream.write_all(&[byte]).unwrap();
        pause();
    }
    send_fd(&stream, &uffd);
    let memory = Arena::map(place, 4).unwrap();
    memory.register(&uffd).unwrap();
    drop(uffd);
    for byte in 0x5253_5446_u32.to_ne_bytes() {
        pause();
        stream.write_all(&[byte]).unwrap();
    }
    end_of(handle).unwrap();
    let first = page - BASE / 4096;
    for i in 0..4 {
        assert!(memory.page(i) == content(first + i), "page {i}");
    }
    memory.unmap().unwrap();
}

/// A userfaultfd is not closed by a failure, so nobody reads zeros; the owner
/// ends the process and then aborts.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn after_a_failure_a_process_waits_until_it_is_killed() {
    let stage = serve(plan());
    let mut child = start_peer("half-restored", stage.dir.path());
    while !stage.handle.is_over() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it has read something it never got");
    child.kill().unwrap();
    assert_eq!(outcome(&mut child).unwrap().code(), None);
    stage.handle.abort();
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_server_can_be_aborted_at_any_time() {
    serve(plan()).handle.abort();
    let stage = serve(plan());
    let mut stream = connect(stage.dir.path());
    say(&mut stream, 7);
    let uffd = open(CRIU_FEATURES).unwrap();
    send_fd(&stream, &uffd);
    let memory = Arena::map(BASE + (80 << 30), PAGES).unwrap();
    memory.register(&uffd).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    stage.handle.abort();
    drop(uffd);
    assert_eq!(memory.read(0), 0, "nobody serves it any more");
    memory.unmap().unwrap();
}
