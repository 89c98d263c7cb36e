//! The target's part in measuring the link: time what comes, keep nothing.

use crate::protocol::ProbeReport;
use blip_transport::link::LinkError;
use blip_transport::link::quic::{Connection, StreamKind};
use blip_transport::units::ByteSize;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Longest probe; a source that goes on longer is not listened to.
const LIMIT: Duration = Duration::from_secs(5);
/// Steps that are told apart.
const STEP: Duration = Duration::from_millis(10);

/// Takes in one probe. It ends when the source has had enough.
///
/// # Errors
/// The connection is lost before the probe begins, or something else comes.
pub(super) async fn receive(link: &Connection) -> Result<ProbeReport, LinkError> {
    let ended = || LinkError::Ended { stream: "probe" };
    let mut stream = timeout(LIMIT, link.accept_bulk()).await.map_err(|_| ended())??;
    let mut report = ProbeReport::default();
    if stream.kind() != StreamKind::Probe {
        return Err(ended());
    }
    let mut begun: Option<Instant> = None;
    let mut bytes = ByteSize(0);
    // The source breaks the stream off: what is on its way then is not waited
    // for. If it was the connection that broke, the answer will say so.
    while let Ok(Ok(Some(frame))) = timeout(LIMIT, stream.recv()).await {
        let since = begun.get_or_insert_with(Instant::now).elapsed();
        bytes += ByteSize(frame.len() as u64);
        let last = report.steps.last().map_or(0, |step| step.0);
        let now = since.as_micros() as u64;
        let apart = now >= last + STEP.as_micros() as u64;
        if report.steps.is_empty() || apart && report.steps.len() < ProbeReport::LIMIT {
            report.steps.push((now, bytes));
        }
        if since > LIMIT {
            break;
        }
    }
    Ok(report)
}
