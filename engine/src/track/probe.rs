//! Can this machine track by write protection, or by soft-dirty bits? If not:
//! what exactly is missing?

use crate::sys::pagemap::{self, Features, Pagemap, Query};
use crate::sys::wp::WriteProtect;
use nix::sys::utsname::uname;

/// What tracking by write protection can rely on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The kernel tells guard pages (`MADV_GUARD_INSTALL`) apart. Before 6.15
    /// it does not, and they look like swapped pages that cannot be read.
    pub guard_pages: bool,
}

/// Why a tracker cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Not written for this architecture.
    #[error("blip injects system calls on x86-64 only, this is {0}")]
    Architecture(&'static str),
    /// No userfaultfd.
    #[error("kernel {release} has no userfaultfd (CONFIG_USERFAULTFD)")]
    Userfaultfd {
        /// The running kernel.
        release: String,
    },
    /// userfaultfd cannot protect asynchronously.
    #[error(
        "kernel {release} has no UFFD_FEATURE_WP_ASYNC (Linux 6.7 on x86-64, 6.10 on arm64, \
         with CONFIG_PTE_MARKER_UFFD_WP)"
    )]
    WpAsync {
        /// The running kernel.
        release: String,
    },
    /// Pages cannot be scanned.
    #[error("kernel {release} has no PAGEMAP_SCAN (Linux 6.7 with CONFIG_PROC_PAGE_MONITOR)")]
    PagemapScan {
        /// The running kernel.
        release: String,
    },
    /// The kernel keeps no soft-dirty bits.
    #[error(
        "kernel {release} keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY, x86-64, s390x and \
         powerpc only)"
    )]
    SoftDirty {
        /// The running kernel.
        release: String,
    },
    /// All there, and yet a write in our own memory was not seen.
    #[error("kernel {release} did not report a write to protected memory: {symptom}")]
    Broken {
        /// The running kernel.
        release: String,
        /// What happened instead.
        symptom: String,
    },
}

/// Finds out by trying it on a page of our own memory.
pub fn probe() -> Result<Capability, Missing> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Missing::Architecture(std::env::consts::ARCH));
    }
    let release = release();
    let protector = match WriteProtect::own() {
        Ok(protector) => protector,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(Missing::WpAsync { release });
        }
        Err(_) => return Err(Missing::Userfaultfd { release }),
    };
    let features = Features::detect().unwrap_or(Features { scan: false, guard: false });
    if !features.scan {
        return Err(Missing::PagemapScan { release });
    }
    match see_a_write(&protector) {
        Ok(true) => Ok(Capability { guard_pages: features.guard }),
        Ok(false) => Err(Missing::Broken { release, symptom: "nothing was reported".into() }),
        Err(error) => Err(Missing::Broken { release, symptom: error.to_string() }),
    }
}

fn release() -> String {
    uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Finds out whether the kernel keeps soft-dirty bits, by trying it on a page
/// of our own memory. Clears the bits of blip itself, which nobody tracks.
pub fn soft_dirty() -> Result<(), Missing> {
    match see_a_soft_dirty_write() {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Missing::SoftDirty { release: release() }),
    }
}

/// Clears the bits, writes to a page of ours, and looks whether that shows.
fn see_a_soft_dirty_write() -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let page = blip_transport::units::PAGE_SIZE;
    let mut memory = vec![1_u8; 2 * page];
    let start = (memory.as_ptr() as u64).next_multiple_of(page as u64);
    let at = (start - memory.as_ptr() as u64) as usize;
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let is_dirty = || {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, start / page as u64 * 8)?;
        Ok::<_, std::io::Error>(u64::from_ne_bytes(entry) & pagemap::SOFT_DIRTY != 0)
    };
    // Other threads clear them too, if they try this at the same time: then
    // the write may seem not to show. Once is enough to know.
    for _ in 0..8 {
        std::fs::write("/proc/self/clear_refs", "4")?;
        let idle = is_dirty()?;
        std::hint::black_box(&mut memory)[at] = 2;
        if !idle && is_dirty()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Protects a page of ours, writes to it, and looks whether that shows.
fn see_a_write(protector: &WriteProtect) -> std::io::Result<bool> {
    let page = blip_transport::units::PAGE_SIZE;
    // Large enough to be a mapping of its own, and given back at the end.
    let mut memory = vec![1_u8; 64 * page];
    let start = (memory.as_ptr() as u64).next_multiple_of(page as u64);
    let at = (start - memory.as_ptr() as u64) as usize;
    let end = start + page as u64;
    if protector.register(start, end).is_err() {
        return Err(std::io::Error::other("private memory was refused"));
    }
    let mut own = Pagemap::open(std::process::id() as i32)?;
    let mut written = || {
        let (all, any) = (pagemap::WRITTEN, pagemap::PRESENT | pagemap::SWAPPED);
        let query = Query { all, none: 0, any, report: pagemap::WRITTEN, protect: true };
        let mut regions = 0;
        own.scan(start, end, query, |_| regions += 1).map(|()| regions)
    };
    let first = written()?;
    let idle = written()?;
    std::hint::black_box(&mut memory)[at] = 2;
    let after = written()?;
    Ok((first, idle, after) == (1, 0, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let missing = Missing::WpAsync { release: "6.1.0".into() };
        assert!(missing.to_string().contains("6.7"), "{missing}");
    }

    #[test]
    fn the_probe_agrees_with_the_kernel_version() {
        let release = uname().unwrap().release().to_string_lossy().into_owned();
        let mut parts = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version < (6, 7) {
            assert!(probe().is_err());
        } else if cfg!(target_arch = "x86_64") && version >= (6, 15) {
            // Newer kernels may still lack a CONFIG; then the probe must say so.
            match probe() {
                Ok(capability) => assert!(capability.guard_pages),
                Err(missing) => assert!(missing.to_string().contains("CONFIG_"), "{missing}"),
            }
        }
    }
}
