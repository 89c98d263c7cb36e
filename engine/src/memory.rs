//! This host's memory.

use blip_transport::units::ByteSize;

/// What programs could still take: `MemAvailable`; 0 if the kernel does not say.
pub fn available() -> ByteSize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    ByteSize(kib.unwrap_or(0) * 1024)
}
