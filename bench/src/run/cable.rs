//! What a host's cable has carried, whoever sent it.

use crate::lab::Host;

/// Bytes that have left a host over its cable; 0 where it does not say.
pub(super) fn sent_by(host: &Host) -> u64 {
    let table = std::fs::read_to_string(format!("/proc/{}/net/dev", host.pid()));
    sent_over("eth0", &table.unwrap_or_default())
}

/// `interface: bytes packets errs drop fifo frame compressed multicast bytes …`,
/// received first.
fn sent_over(interface: &str, table: &str) -> u64 {
    let mut lines = table.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(name, _)| name.trim() == interface);
    let count = line.and_then(|(_, counts)| counts.split_whitespace().nth(8)?.parse().ok());
    count.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_stands_behind_what_was_received() {
        let table = "Inter-|   Receive  | Transmit\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 1 2 0\n\
                     eth0: 100 9 0 0 0 0 0 0 4242 7 0 0 0 0 0 0\n";
        assert_eq!(sent_over("eth0", table), 4242);
        assert_eq!(sent_over("eth1", table), 0);
    }
}
