//! The commands on a container that is staged but not restored.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::args::Invocation;
use super::bundle::Bundle;
use super::stage::StageDir;
use super::stage::wire::{self, Answer, Ask};

/// How long a holder may take to clear the stage, in all.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the outcome of the handover.
pub(super) fn start(stage: &StageDir) -> Result<(), String> {
    match ask(stage, &Ask::Start, None)? {
        Answer::Done => Ok(()),
        Answer::Failed { why } => Err(why),
    }
}

/// Prints the state in runc's form.
pub(super) fn state(stage: &StageDir, id: &str) -> Result<(), String> {
    let record = stage.record().ok_or("container does not exist")?;
    let alive = stage.living_holder().is_some();
    let (status, pid) = if alive { ("created", record.pid) } else { ("stopped", 0) };
    let mut state = Bundle::read(&record.bundle)?.state(id, pid, status);
    state["rootfs"] = record.rootfs.to_string_lossy().into();
    state["created"] = record.created.into();
    state["owner"] = "".into();
    print(&serde_json::to_string_pretty(&state).unwrap_or_default())
}

/// Any signal ends the stage: there is no program yet that could catch it.
pub(super) fn kill(stage: &StageDir) -> Result<(), String> {
    if stage.living_holder().is_none() {
        return Err("container not running".into());
    }
    end(stage)
}

/// Clears the stage. Without `--force` only when nothing stands on it, or
/// nothing but the holder, as runc does with a created container.
pub(super) fn delete(call: &Invocation, stage: &StageDir) -> Result<(), String> {
    if stage.record().is_none() {
        return Err("container does not exist".into());
    }
    if stage.living_holder().is_some() {
        end(stage)?;
    }
    super::holder::clear_runc_leftovers(call.global.root.as_deref(), &call.id);
    let _ = std::fs::remove_file(stage.path().join("holder.json"));
    Ok(())
}

/// The pids of the container: the holder's.
pub(super) fn ps(stage: &StageDir) -> Result<(), String> {
    let pids: Vec<i32> = stage.living_holder().into_iter().map(|r| r.pid).collect();
    print(&serde_json::to_string(&pids).unwrap_or_default())
}

/// What cannot be done to a container that is not here yet.
pub(super) fn refuse(command: &str) -> Result<(), String> {
    Err(format!(
        "the container is on its way to this host; '{command}' is possible when it runs here"
    ))
}

fn end(stage: &StageDir) -> Result<(), String> {
    let Some(holder) = stage.living_holder() else { return Ok(()) };
    let begun = Instant::now();
    // The answer may be cut off by the end of the holder, which is the point.
    let _ = ask(stage, &Ask::End, Some(END_PATIENCE));
    while stage.living_holder().is_some() {
        if begun.elapsed() > END_PATIENCE {
            let pid = nix::unistd::Pid::from_raw(holder.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            return Err(format!(
                "the holder (pid {}) did not end within {END_PATIENCE:?}; killed it",
                holder.pid
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn ask(stage: &StageDir, ask: &Ask, patience: Option<Duration>) -> Result<Answer, String> {
    let fail = |e: std::io::Error| format!("cannot reach the holder of the container: {e}");
    let stream = UnixStream::connect(stage.holder_socket()).map_err(fail)?;
    stream.set_read_timeout(patience).map_err(fail)?;
    wire::send(&stream, ask).map_err(fail)?;
    wire::receive(&mut BufReader::new(&stream))
        .map_err(fail)?
        .ok_or_else(|| "the holder of the container ended before the container came".to_owned())
}

fn print(text: &str) -> Result<(), String> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| format!("cannot write the answer: {e}"))
}
