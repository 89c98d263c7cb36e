//! Two ends of the real link over loopback: what must work, and how it must
//! fail.

use blip_transport::identity::{Identity, PeerName, Peers, Trust};
use blip_transport::link::quic::{
    BlobName, BlobReceiver, CloseCode, Control, Listener, PROTOCOL_VERSION, Priority, Session,
    Settings, StreamKind, dial, settings,
};
use blip_transport::link::{LinkError, LostWhy, UnreachableWhy};
use blip_transport::units::{ByteSize, Round, TreeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn identity() -> Identity {
    Identity::ephemeral().expect("randomness")
}

struct Pair {
    source: Session,
    target: Session,
    _listener: Listener,
}

/// Two paired ends over loopback.
async fn pair_with(settings: Settings) -> Pair {
    let (source, target) = (identity(), identity());
    let trust = Trust::only(source.fingerprint());
    let mut listener = Listener::bind(loopback(), &target, trust, settings.clone()).unwrap();
    let addr = listener.local_addr();
    let expected = Trust::only(target.fingerprint());
    let (dialed, accepted) =
        tokio::join!(dial(addr, &source, &expected, &settings), listener.accept());
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap().unwrap());
    assert_eq!(dialed.connection.peer(), target.fingerprint());
    assert_eq!(accepted.connection.peer(), source.fingerprint());
    Pair { source: dialed, target: accepted, _listener: listener }
}

async fn pair() -> Pair {
    pair_with(Settings::default()).await
}

/// Both ends' errors where at least the dialer must fail.
async fn refused(
    dialer: (&Identity, Trust, Settings),
    listener: (&Identity, Trust, Settings),
) -> (LinkError, LinkError) {
    let mut door = Listener::bind(loopback(), listener.0, listener.1, listener.2).unwrap();
    let addr = door.local_addr();
    let (dialed, accepted) =
        tokio::join!(dial(addr, dialer.0, &dialer.1, &dialer.2), timeout(PATIENCE, door.accept()));
    let accepted = accepted.expect("the listener must report it").unwrap();
    (dialed.err().expect("no connection"), accepted.err().expect("no connection"))
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Message {
    Hello(String),
    Numbers(Vec<u64>),
    Nothing,
}

#[tokio::test]
async fn control_messages_make_the_round_trip() {
    let Pair { mut source, mut target, .. } = pair().await;
    let long = Message::Numbers((0..1_000_000).collect());
    let echo = tokio::spawn(async move {
        for _ in 0..3 {
            let message: Message = target.control.recv().await.unwrap();
            target.control.send(&message).await.unwrap();
        }
        target
    });
    for message in [Message::Hello("a".into()), long, Message::Nothing] {
        source.control.send(&message).await.unwrap();
        assert_eq!(source.control.recv::<Message>().await.unwrap(), message);
    }
    echo.await.unwrap();
    assert!(source.connection.peer_software().starts_with("blip "));
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    let Pair { source, target, .. } = pair().await;
    let (mut sender, _keep) = source.control.split();
    let (_keep2, mut receiver) = target.control.split();
    let send = tokio::spawn(async move {
        for i in 0..40_u64 {
            sender.send(&Message::Numbers(vec![i; 20_000])).await.unwrap();
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        sender.finish().await.unwrap();
    });
    let mut got = Vec::new();
    let mut cancelled = 0;
    while got.len() < 40 {
        tokio::select! {
            biased;
            message = receiver.recv::<Message>() => match message.unwrap() {
                Message::Numbers(numbers) => got.push(numbers[0]),
                other => panic!("{other:?}"),
            },
            () = tokio::time::sleep(Duration::from_micros(50)) => cancelled += 1,
        }
    }
    assert_eq!(got, (0..40).collect::<Vec<_>>());
    assert!(cancelled > 0, "the test has not tested anything");
    send.await.unwrap();
    let end = receiver.recv::<Message>().await.unwrap_err();
    assert!(matches!(end, LinkError::Ended { stream: "control" }), "{end:?}");
}

/// Sends `total` bytes over `streams` bulk streams; the time until the target
/// has read all of them.
async fn bulk(pair: &Pair, streams: usize, total: usize) -> Duration {
    let frame = Bytes::from(vec![0x5a; MIB]);
    let began = Instant::now();
    for _ in 0..streams {
        let (connection, frame) = (pair.source.connection.clone(), frame.clone());
        tokio::spawn(async move {
            let kind = StreamKind::Pages(Round(3));
            let mut sender = connection.open_bulk(kind, Priority::BULK).await.unwrap();
            for _ in 0..total / streams / MIB {
                sender.send(frame.clone()).await.unwrap();
            }
            sender.finish();
        });
    }
    let mut readers = Vec::new();
    for _ in 0..streams {
        let mut receiver = pair.target.connection.accept_bulk().await.unwrap();
        assert_eq!(receiver.kind(), StreamKind::Pages(Round(3)));
        readers.push(tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(frame) = receiver.recv().await.unwrap() {
                assert!(frame[0] == 0x5a && frame[frame.len() - 1] == 0x5a);
                bytes += frame.len();
            }
            bytes
        }));
    }
    let mut bytes = 0;
    for reader in readers {
        bytes += reader.await.unwrap();
    }
    assert_eq!(bytes, total);
    began.elapsed()
}

fn report(what: &str, bytes: usize, time: Duration, pair: &Pair) {
    let rate = bytes as f64 / time.as_secs_f64() / MIB as f64;
    println!("{what}: {rate:.0} MiB/s, source {:?}", pair.source.connection.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_data_arrives_whole() {
    let pair = pair().await;
    for streams in [1, 4] {
        let time = bulk(&pair, streams, 256 * MIB).await;
        report(&format!("256 MiB over {streams} streams"), 256 * MIB, time, &pair);
    }
    let stats = pair.source.connection.stats();
    assert!(stats.sent.0 > 512 * MIB as u64, "{stats:?}");
    // Loopback loses nothing; without a ceiling the window would be far above.
    // (A busy machine's loopback may look like a longer path: that has a cap, too.)
    let cap = settings::MAX_IN_FLIGHT.0.max(settings::STREAM_WINDOW.into());
    assert!(stats.cwnd.0 > 0 && stats.cwnd.0 <= cap, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_requests_are_answered_while_bulk_saturates() {
    let pair = pair().await;
    let (source, target) = (pair.source.connection.clone(), pair.target.connection.clone());
    let flood = tokio::spawn(async move { bulk(&pair, 2, 512 * MIB).await });
    let server = tokio::spawn(async move {
        let mut server = source.accept_urgent().await.unwrap();
        let replies = server.replies();
        while let Some(asked) = server.next::<u64>().await.unwrap() {
            let page = Bytes::from(vec![asked.what as u8; 4096]);
            replies.reply(asked.id, page).await.unwrap();
        }
    });
    let urgent = target.open_urgent().await.unwrap();
    let mut times = Vec::new();
    let mut during = 0;
    for i in 0..400_u64 {
        let asked = Instant::now();
        let page = timeout(PATIENCE, urgent.request(&i)).await.unwrap().unwrap();
        times.push(asked.elapsed());
        assert_eq!(page, vec![i as u8; 4096]);
        during += u32::from(!flood.is_finished());
    }
    times.sort();
    println!(
        "urgent under load: p50 {:?} p99 {:?} max {:?}, {during} of 400 during bulk",
        times[200], times[396], times[399]
    );
    assert!(during > 0, "the bulk data was gone before the first question");

    // Pipelined: all at once, each gets its own answer.
    let answers: Vec<_> = (0..200_u64)
        .map(|i| {
            let urgent = urgent.clone();
            tokio::spawn(async move { (i, urgent.request(&i).await.unwrap()) })
        })
        .collect();
    for answer in answers {
        let (i, page) = answer.await.unwrap();
        assert_eq!(page, vec![i as u8; 4096]);
    }
    flood.await.unwrap();
    drop(urgent);
    server.await.unwrap();
}

#[tokio::test]
async fn unread_bulk_data_does_not_hold_up_control() {
    let Pair { mut source, mut target, .. } = pair().await;
    let mut stuck = Vec::new();
    let mut unread = Vec::new();
    for _ in 0..settings::MAX_UNI_STREAMS {
        let mut sender = source
            .connection
            .open_bulk(StreamKind::Pages(Round(0)), Priority::AHEAD)
            .await
            .unwrap();
        stuck.push(tokio::spawn(async move {
            let frame = Bytes::from(vec![0; 2 * MIB]);
            loop {
                sender.send(frame.clone()).await.unwrap();
            }
        }));
        unread.push(target.connection.accept_bulk().await.unwrap());
    }
    // Long enough for every stream to run into its window.
    let full = u64::from(settings::STREAM_WINDOW * settings::MAX_UNI_STREAMS);
    timeout(PATIENCE, async {
        while source.connection.stats().sent.0 < full {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    for _ in 0..20 {
        timeout(PATIENCE, source.control.send(&Message::Nothing)).await.unwrap().unwrap();
        let got = timeout(PATIENCE, target.control.recv::<Message>()).await.unwrap().unwrap();
        assert_eq!(got, Message::Nothing);
    }
    assert!(stuck.iter().all(|task| !task.is_finished()));
    stuck.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn blobs_arrive_under_their_names() {
    let Pair { source, target, .. } = pair().await;
    let small = Bytes::from_static(b"small");
    let large: Bytes = (0..5 * MIB).map(|i| (i % 251) as u8).collect();
    let (s, l) = (small.clone(), large.clone());
    let name = |text| BlobName::new(text).unwrap();
    tokio::spawn(async move {
        let mut blobs = source.connection.open_blobs(Priority::AHEAD).await.unwrap();
        blobs.send_file(&name("core-1.img"), s.clone()).await.unwrap();
        blobs.send_file(&name("empty"), Bytes::new()).await.unwrap();
        blobs.send_file(&name("skipped"), l.clone()).await.unwrap();
        blobs.send_file(&name("large"), l).await.unwrap();
        blobs.finish();
        source.connection.closed().await;
    });
    let stream = target.connection.accept_bulk().await.unwrap();
    assert_eq!(stream.kind(), StreamKind::Blobs);
    let mut blobs = BlobReceiver::new(stream);
    let limit = ByteSize(8 * MIB as u64);
    let first = blobs.next_whole(limit).await.unwrap().unwrap();
    assert_eq!((first.name.as_str(), first.bytes), ("core-1.img", small));
    let empty = blobs.next_whole(limit).await.unwrap().unwrap();
    assert_eq!((empty.name.as_str(), empty.bytes.len()), ("empty", 0));
    let skipped = blobs.next().await.unwrap().unwrap();
    assert_eq!(skipped.size, ByteSize(5 * MIB as u64));
    blobs.chunk().await.unwrap().unwrap();
    let last = blobs.next_whole(limit).await.unwrap().unwrap();
    assert!(last.name.as_str() == "large" && last.bytes == large);
    assert!(blobs.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_blob_beyond_the_limit_is_refused_by_its_head() {
    let Pair { source, target, .. } = pair().await;
    tokio::spawn(async move {
        let mut blobs = source.connection.open_blobs(Priority::AHEAD).await.unwrap();
        let name = BlobName::new("large").unwrap();
        let _ = blobs.send_file(&name, vec![0; 3 * MIB].into()).await;
        source.connection.closed().await;
    });
    let mut blobs = BlobReceiver::new(target.connection.accept_bulk().await.unwrap());
    let error = blobs.next_whole(ByteSize(MIB as u64)).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { stream: "blobs", .. }), "{error:?}");
}

#[tokio::test]
async fn an_abandoned_bulk_stream_never_looks_complete() {
    let Pair { source, target, .. } = pair().await;
    let mut sender = source
        .connection
        .open_bulk(StreamKind::Files(TreeId(0), Round(1)), Priority::BULK)
        .await
        .unwrap();
    sender.send(Bytes::from_static(b"one")).await.unwrap();
    let mut receiver = target.connection.accept_bulk().await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "one");
    drop(sender);
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, LinkError::Abandoned { stream: "files" }), "{error:?}");
}

#[tokio::test]
async fn a_reader_that_leaves_stops_the_sender() {
    let Pair { source, target, .. } = pair().await;
    let mut sender =
        source.connection.open_bulk(StreamKind::Pages(Round(0)), Priority::BULK).await.unwrap();
    drop(target.connection.accept_bulk().await.unwrap());
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = sender.send(Bytes::from(vec![0; MIB])).await {
                return error;
            }
        }
    })
    .await
    .unwrap();
    assert!(matches!(error, LinkError::NotWanted { stream: "pages" }), "{error:?}");
}

#[tokio::test]
async fn a_send_cancelled_half_way_spoils_only_its_stream() {
    let Pair { source, target, .. } = pair().await;
    let mut sender =
        source.connection.open_bulk(StreamKind::Pages(Round(0)), Priority::BULK).await.unwrap();
    let _unread = target.connection.accept_bulk().await.unwrap();
    let frame = Bytes::from(vec![0; 2 * MIB]);
    let fill = async {
        loop {
            sender.send(frame.clone()).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(1500), fill).await.is_err());
    let error = sender.send(frame).await.unwrap_err();
    assert!(matches!(error, LinkError::HalfSent { stream: "pages" }), "{error:?}");
    source.connection.open_bulk(StreamKind::Blobs, Priority::BULK).await.unwrap();
}

#[tokio::test]
async fn frames_beyond_the_limit_do_not_leave() {
    let Pair { mut source, .. } = pair().await;
    let mut sender = source.connection.open_bulk(StreamKind::Blobs, Priority::BULK).await.unwrap();
    let error = sender.send(Bytes::from(vec![0; 2 * MIB + 1])).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { limit: 2_097_152, .. }), "{error:?}");
    let error = source.control.send(&vec![0_u8; 17 * MIB]).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { stream: "control", .. }), "{error:?}");
    let urgent = source.connection.open_urgent().await.unwrap();
    let error = urgent.request(&vec![0_u8; 70_000]).await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { stream: "urgent", .. }), "{error:?}");
    sender.send(Bytes::from_static(b"fits")).await.unwrap();
}

#[tokio::test]
async fn a_message_of_another_type_is_reported_and_skipped() {
    let Pair { mut source, mut target, .. } = pair().await;
    source.control.send(&(7_u64, "more than a bool")).await.unwrap();
    source.control.send(&Message::Nothing).await.unwrap();
    let error = target.control.recv::<bool>().await.unwrap_err();
    assert!(matches!(error, LinkError::Malformed { stream: "control", .. }), "{error:?}");
    assert_eq!(target.control.recv::<Message>().await.unwrap(), Message::Nothing);
}

#[tokio::test]
async fn the_wrong_identity_is_named_at_both_ends() {
    let (source, target, other) = (identity(), identity(), identity());
    let (dialed, accepted) = refused(
        (&source, Trust::only(other.fingerprint()), Settings::default()),
        (&target, Trust::only(source.fingerprint()), Settings::default()),
    )
    .await;
    assert!(
        matches!(&dialed, LinkError::WrongIdentity { expected, got, .. }
            if *expected == [other.fingerprint()] && *got == target.fingerprint()),
        "{dialed:?}"
    );
    assert!(
        matches!(accepted, LinkError::NotRecognised { ours, .. } if ours == target.fingerprint()),
        "{accepted:?}"
    );
    assert!(dialed.to_string().contains("blip pair"), "{dialed}");
}

#[tokio::test]
async fn an_unpaired_host_is_named_at_both_ends() {
    let (source, target) = (identity(), identity());
    let (dialed, accepted) = refused(
        (&source, Trust::only(target.fingerprint()), Settings::default()),
        (&target, Trust::any_of([]), Settings::default()),
    )
    .await;
    assert!(
        matches!(dialed, LinkError::NotPaired { ours, .. } if ours == source.fingerprint()),
        "{dialed:?}"
    );
    assert!(
        matches!(accepted, LinkError::Stranger { got, .. } if got == source.fingerprint()),
        "{accepted:?}"
    );
}

#[tokio::test]
async fn without_a_pin_nothing_is_dialed() {
    let (source, nobody) = (identity(), Trust::any_of([]));
    let error = dial(loopback(), &source, &nobody, &Settings::default()).await.err().unwrap();
    assert!(matches!(error, LinkError::NobodyPinned { .. }), "{error:?}");
}

#[tokio::test]
async fn another_protocol_version_is_told_to_both_ends() {
    let (source, target) = (identity(), identity());
    let newer =
        Settings { protocol_version: 9, software: "blip 9.9".into(), ..Settings::default() };
    let (dialed, accepted) = refused(
        (&source, Trust::only(target.fingerprint()), Settings::default()),
        (&target, Trust::only(source.fingerprint()), newer),
    )
    .await;
    assert!(
        matches!(&dialed, LinkError::Version { ours: PROTOCOL_VERSION, theirs: 9, their_software }
            if their_software == "blip 9.9"),
        "{dialed:?}"
    );
    assert!(
        matches!(accepted, LinkError::Version { ours: 9, theirs: PROTOCOL_VERSION, .. }),
        "{accepted:?}"
    );
}

#[tokio::test]
async fn pairing_takes_effect_without_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("agent");
    let (source, target) = (identity(), Identity::load_or_create(&dir).unwrap());
    let settings = Settings::default();
    let mut listener =
        Listener::bind(loopback(), &target, Trust::peers_in(&dir), settings.clone()).unwrap();
    let addr = listener.local_addr();
    let trust = Trust::only(target.fingerprint());

    let refused = dial(addr, &source, &trust, &settings).await.err().unwrap();
    assert!(matches!(refused, LinkError::NotPaired { .. }), "{refused:?}");
    assert!(matches!(listener.accept().await.unwrap(), Err(LinkError::Stranger { .. })));

    let name = PeerName::new("source").unwrap();
    Peers::add(&dir, &name, source.fingerprint()).unwrap();
    dial(addr, &source, &trust, &settings).await.unwrap();
    listener.accept().await.unwrap().unwrap();

    Peers::remove(&dir, "source").unwrap();
    let refused = dial(addr, &source, &trust, &settings).await.err().unwrap();
    assert!(matches!(refused, LinkError::NotPaired { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_closed_port_is_noticed_at_once() {
    let (source, other) = (identity(), identity());
    let port = std::net::UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let began = Instant::now();
    let trust = Trust::only(other.fingerprint());
    let error = dial(port, &source, &trust, &Settings::default()).await.err().unwrap();
    assert!(
        matches!(error, LinkError::Unreachable { why: UnreachableWhy::Refused, .. }),
        "{error:?} after {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn silence_is_not_waited_for_longer_than_asked() {
    let (source, other) = (identity(), identity());
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let short = Settings { connect_timeout: Duration::from_millis(300), ..Settings::default() };
    let trust = Trust::only(other.fingerprint());
    let addr = silent.local_addr().unwrap();
    for settings in [short, Settings::default()] {
        let error = dial(addr, &source, &trust, &settings).await.err().unwrap();
        let LinkError::Unreachable { why: UnreachableWhy::TimedOut(time), .. } = error else {
            panic!("{error:?}");
        };
        println!("silence: gave up after {time:?}");
        assert!(time <= settings.connect_timeout, "{time:?}");
    }
}

#[tokio::test]
async fn a_listener_that_is_gone_refuses_and_keeps_its_connections() {
    let (source, target) = (identity(), identity());
    let settings = Settings::default();
    let mut listener =
        Listener::bind(loopback(), &target, Trust::only(source.fingerprint()), settings.clone())
            .unwrap();
    let addr = listener.local_addr();
    let trust = Trust::only(target.fingerprint());
    let mut first = dial(addr, &source, &trust, &settings).await.unwrap();
    let mut accepted = listener.accept().await.unwrap().unwrap();
    drop(listener);
    let error = dial(addr, &source, &trust, &settings).await.err().unwrap();
    assert!(
        matches!(error, LinkError::Unreachable { why: UnreachableWhy::Refused, .. }),
        "{error:?}"
    );
    first.control.send(&Message::Nothing).await.unwrap();
    assert_eq!(accepted.control.recv::<Message>().await.unwrap(), Message::Nothing);
}

#[tokio::test]
async fn a_farewell_is_heard_everywhere() {
    let Pair { source, target, .. } = pair().await;
    let mut source_control: Control = source.control;
    let urgent = source.connection.open_urgent().await.unwrap();
    let waiting = tokio::spawn(async move { urgent.request(&1_u8).await });
    // The urgent stream exists for the target once the question is there.
    let _server = target.connection.accept_urgent().await.unwrap();
    target.connection.close(CloseCode::Aborted, "no room for 3 GiB").await;
    let heard = source_control.recv::<Message>().await.unwrap_err();
    let said = LostWhy::ClosedByPeer {
        code: CloseCode::Aborted.number().into(),
        reason: "no room for 3 GiB".into(),
    };
    assert!(matches!(&heard, LinkError::ConnectionLost { why } if *why == said), "{heard:?}");
    assert_eq!(source.connection.closed().await, said);
    let urgent = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&urgent, LinkError::ConnectionLost { why } if *why == said), "{urgent:?}");
    assert_eq!(target.connection.closed().await, LostWhy::ClosedHere);
}

#[tokio::test]
async fn the_last_words_arrive_before_the_close() {
    let Pair { source, mut target, .. } = pair().await;
    let (mut sender, _receiver) = source.control.split();
    sender.send(&Message::Hello("last".into())).await.unwrap();
    let read = tokio::spawn(async move { target.control.recv::<Message>().await });
    sender.finish().await.unwrap();
    source.connection.close(CloseCode::Done, "").await;
    assert_eq!(read.await.unwrap().unwrap(), Message::Hello("last".into()));
}

/// Not a test but a measurement: `cargo test --release -p blip-transport
/// --test link -- --ignored --nocapture measure`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be read by a person"]
async fn measure_throughput() {
    for _ in 0..3 {
        for streams in [1, 4] {
            let pair = pair().await;
            let before = cpu_time();
            let time = bulk(&pair, streams, 1024 * MIB).await;
            println!("{:?} of processor time for 1 GiB, both ends", cpu_time() - before);
            report(&format!("{streams} streams"), 1024 * MIB, time, &pair);
        }
    }
}

/// As above: one question after the other while four bulk streams run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be read by a person"]
async fn measure_urgent() {
    for _ in 0..3 {
        let pair = pair().await;
        let (source, target) = (pair.source.connection.clone(), pair.target.connection.clone());
        let flood = tokio::spawn(async move { bulk(&pair, 4, 1024 * MIB).await });
        tokio::spawn(async move {
            let mut server = source.accept_urgent().await.unwrap();
            let replies = server.replies();
            while let Ok(Some(asked)) = server.next::<u64>().await {
                replies.reply(asked.id, Bytes::from(vec![1; 4096])).await.unwrap();
            }
        });
        let urgent = target.open_urgent().await.unwrap();
        let mut times = Vec::new();
        while !flood.is_finished() {
            let asked = Instant::now();
            if urgent.request(&1_u64).await.is_err() {
                break;
            }
            times.push(asked.elapsed());
        }
        times.sort();
        let (n, last) = (times.len(), times.len() - 1);
        println!(
            "{n} questions: p50 {:?} p99 {:?} max {:?}",
            times[n / 2],
            times[n * 99 / 100],
            times[last]
        );
        println!("bulk: {:.0} MiB/s", 1024.0 / flood.await.unwrap().as_secs_f64());
    }
}

/// Processor time this process has used.
fn cpu_time() -> Duration {
    use nix::sys::time::TimeValLike;
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros as u64)
}

/// Where the process to be killed keeps its identity and tells its port.
const VICTIM: &str = "BLIP_TEST_VICTIM";

/// An agent in a process of its own, for the test below.
#[tokio::test]
#[ignore = "not a test: the process that is killed in one"]
async fn victim_process() {
    let Some(dir) = std::env::var_os(VICTIM).map(std::path::PathBuf::from) else { return };
    let identity = Identity::load_or_create(&dir).unwrap();
    let mut listener =
        Listener::bind(loopback(), &identity, Trust::peers_in(&dir), Settings::default()).unwrap();
    std::fs::write(dir.join("port.new"), listener.local_addr().to_string()).unwrap();
    std::fs::rename(dir.join("port.new"), dir.join("port")).unwrap();
    let _session = listener.accept().await.unwrap().unwrap();
    std::future::pending::<()>().await;
}

/// Ends the child also when the test fails.
struct Victim(std::process::Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_killed_process_is_noticed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("agent");
    let (source, target) = (identity(), Identity::load_or_create(&dir).unwrap());
    Peers::add(&dir, &PeerName::new("source").unwrap(), source.fingerprint()).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim_process", "--ignored"])
        .env(VICTIM, &dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut victim = Victim(child);
    let addr: SocketAddr = timeout(PATIENCE, async {
        loop {
            if let Ok(text) = std::fs::read_to_string(dir.join("port")) {
                return text.parse().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let trust = Trust::only(target.fingerprint());
    let mut session = dial(addr, &source, &trust, &Settings::default()).await.unwrap();

    // Alive: keep-alives bridge any silence.
    let quiet = timeout(settings::IDLE_TIMEOUT * 2, session.connection.closed()).await;
    assert!(quiet.is_err(), "a living peer was given up: {quiet:?}");

    victim.0.kill().unwrap();
    let killed = Instant::now();
    let why = timeout(PATIENCE, session.connection.closed()).await.unwrap();
    println!("a killed process was noticed after {:?}", killed.elapsed());
    assert_eq!(why, LostWhy::TimedOut);
    let error = session.control.recv::<Message>().await.unwrap_err();
    assert!(matches!(error, LinkError::ConnectionLost { why: LostWhy::TimedOut }), "{error:?}");
}
