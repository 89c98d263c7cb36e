//! The forwarder that takes a container's place when it has left.

use crate::event::{Event, Events};
use crate::forward::{Forward, Protocol, Spawned};
use crate::text::brief_time;
use std::net::SocketAddr;

/// Starts the forwarder before the container's end; new connections wait from
/// here on. One that does not start is no reason to stop: the container has
/// moved.
pub(crate) async fn start(forward: Option<&Forward>) -> Option<Spawned> {
    match Spawned::start(forward?).await {
        Ok(spawned) => Some(spawned),
        Err(error) => {
            tracing::error!("nothing is forwarded: {error}");
            None
        }
    }
}

/// Waits until Docker has let go of the ports, and says what is forwarded.
pub(crate) async fn opened(
    spawned: Option<Spawned>,
    forward: Option<&Forward>,
    events: Option<&Events>,
) {
    let (Some(spawned), Some(forward)) = (spawned, forward) else { return };
    let text = match spawned.opened().await {
        Ok(()) => words(forward),
        Err(error) => format!("nothing is forwarded: {error}"),
    };
    match events {
        Some(events) => events.send(Event::Note { text }),
        None => tracing::info!("{text}"),
    }
}

fn words(forward: &Forward) -> String {
    let port = |port: &crate::forward::Port| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{}/{protocol}", port.listen)
    };
    let ports: Vec<_> = forward.ports.iter().map(port).collect();
    let target = SocketAddr::new(forward.target, 0);
    let target = target.to_string();
    let target = target.trim_end_matches(":0");
    format!(
        "forwarding {} to {target} for {}; `blip forward stop {}` ends it",
        ports.join(", "),
        brief_time(forward.seconds as f64 * 1e3),
        &forward.ticket.to_string()[..8],
    )
}
