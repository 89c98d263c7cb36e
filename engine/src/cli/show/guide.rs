//! The description of what `blip migrate --json` prints: `blip help events`.
//!
//! A test compares it with what the types really serialise to.

/// Every event and every field of it, with its unit.
pub(crate) const EVENTS: &str = "\
`blip migrate --json` prints one JSON object a line on standard output. Every
object has
  at_ms   milliseconds since the command began
  event   which of the following it is
New events and fields may be added; skip what you do not know. Numbers named
_ms are milliseconds, _us microseconds, bytes_ bytes; counts of pages are base
pages of 4096 bytes; rates are bytes a second; null means: not known.

begin      A phase began.
  phase      preflight: look at both sides, touch nothing
             stage: the target prepares everything but the processes
             pre_copy: rounds of copying while the container runs
             freeze: it is stopped                           (downtime begins)
             dump: its state is written, the last pages are read
             ship: the last pages, the state and the files reach the target
             restore: the target recreates the processes
             fill: all memory is put into them, if it must be there first
             grant: the target is let run it                 (downtime ends)
             drain: memory that is still missing follows
             retire: the source is ended for good
end        A phase ended well.
  phase      as above
  ms         its length
round      A round of copying ended. Those with frozen are inside the downtime:
           the last look, what CRIU touched, shared memory that had changed.
  round      its number, from 0
  frozen     whether the container stood still
  scanned    pages looked at
  dirty      pages that had to be read
  sent       pages whose bytes were sent
  zero       pages of zeros, sent as a mark
  unchanged  pages rewritten with what the target already had
  deduplicated  pages sent as a reference to content the target holds
  pushed     whether it went after the container, which ran on the target by
             then
  held_back  dirty pages not read, as they are dirtied in round after round
  bytes_raw  bytes of the dirty pages
  bytes_wire bytes that went over the link for them
  ms         length of the round
  stall_ms   longest time a thread of the container was stopped for tracking
progress   A round is under way; a few times a second.
  round      its number
  done       pages of it read so far
  dirty      pages it has to read
  bytes_wire bytes over the link since the start
  throughput over the link at present, bytes a second
  dirty_rate how fast the container dirties pages, bytes a second
  predicted_downtime_ms  if it were frozen at the end of this round
decision   Something was decided.
  what, why  in words and numbers
forecast   What the planner expects of the method that it follows, as of now.
  method     stop-and-copy, pre-copy, post-copy or hybrid
  rounds     rounds of copying, the frozen one included
  bytes      bytes over the link
  total_ms   from the start until it runs on the target with all its memory
  downtime_ms, downtime  its length, and a list of its parts {phase, ms}
  brownout_ms  from the resume until the last page is in place
  met        whether that meets the target; null without one
  confidence that the downtime lies within a quarter of the forecast, 0 to 1
throttle   The container's CPU time is cut.
  percent    by so much; 0: it has all of it again
note       Something worth knowing.
  text       in words
called_off It ended before the container was frozen, which runs on as before.
  why        in words
finished   The report; the last event, unless it was called off.
  outcome    moved, kept (it runs here) or in_doubt (`blip resolve`)
  why        of kept and in_doubt, in words
  container  its name
  target_id  its ID on the target, if it moved
  downtime_ms, downtime  from the order to freeze until the source learned that
             it runs on the target, and its parts {phase, ms}. This says
             nothing of what clients saw
  total_ms   length of the command
  rounds     a list of all rounds, each as in the event round
  files      its writable layer, volumes and tmpfs mounts:
    passes     over all files while it ran
    first, last, frozen  the first and the last of those, and what was done
               inside the downtime, each with scanned and changed (files,
               directories, links), bytes_read (to find out), bytes_wire (over
               the link), ms
  bytes_sent bytes that left the source in all, after compression
  bytes_received
             bytes that came back: answers, and the list of what the target
             still had of an earlier move
  memory_bytes  the container's own memory that had to be moved
  lazy       how memory came into the restored container:
    faults     page faults that had to wait
    from_store, from_source  pages that came out of the target's store, and
               from the frozen source
    p50_us, p99_us  time to serve a fault: half, and 99 of 100, took no longer
    drain_ms   from the resume until the last page was in place
    samples    a list of steps of time, each with at_ms (its end, after the
               resume), faults, pages, from_source
  goal       what was asked for: downtime_ms, deadline_ms, on_miss, method,
             bandwidth, throttle
  method     the method that was used
  predicted  the forecast when it was frozen, as in the event forecast
  met        whether the downtime met the target
  throttled_percent  most CPU time that was taken
  unknowns   what blip cannot know from where it stands, in words
  tracker    how changed pages were found, and why so
  tracking   what that took on the source:
    peak_bytes  most memory or disk for pages on their way
    fell_back  rounds that took all pages, as a pre-dump failed
  versions   blip; docker, criu, runc, kernel as [source, target]
  notes      what an operator should know, in words";

#[cfg(test)]
mod tests {
    use super::super::summary_tests::report;
    use super::EVENTS;
    use crate::event::{Event, LazySample, Phase, Progress, RoundReport, Timed};
    use crate::handover::Outcome;
    use crate::text::WIDTH;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn every_event() -> Vec<Event> {
        let phase = Phase::Freeze;
        let mut moved = report();
        moved.lazy.samples.push(LazySample::default());
        let mut kept = report();
        kept.outcome = Outcome::Kept { why: String::new() };
        let forecast = moved.predicted.clone().unwrap();
        vec![
            Event::Begin { phase },
            Event::End { phase, ms: 1.0 },
            Event::Round(RoundReport::default()),
            Event::Progress(Progress::default()),
            Event::Decision { what: String::new(), why: String::new() },
            Event::Forecast(forecast),
            Event::Throttle { percent: 1 },
            Event::Note { text: String::new() },
            Event::CalledOff { why: String::new() },
            Event::Finished(Box::new(moved)),
            Event::Finished(Box::new(kept)),
        ]
    }

    fn names(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                found.insert(name.clone());
                names(value, found);
            }),
            Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_event_every_field_and_every_phase_is_described() {
        let words: BTreeSet<&str> =
            EVENTS.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let mut wanted: BTreeSet<String> =
            Phase::DOWNTIME.iter().map(|phase| phase.name().to_owned()).collect();
        for event in every_event() {
            let value = serde_json::to_value(Timed { at_ms: 0.0, event }).unwrap();
            wanted.insert(value["event"].as_str().unwrap().to_owned());
            names(&value, &mut wanted);
        }
        let missing: Vec<_> = wanted.iter().filter(|name| !words.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "not described: {missing:?}");
    }

    #[test]
    fn it_fits_a_terminal() {
        assert!(EVENTS.lines().all(|line| line.chars().count() <= WIDTH));
    }
}
