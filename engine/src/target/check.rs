//! What a host is made of, and whether a container could live there.

use super::mounts::{self, Remains};
use super::{apparmor, segment};
use crate::criu::rpc::Worker;
use crate::docker::{Docker, DockerError};
use crate::image::Held;
use crate::kept;
use crate::memory;
use crate::protocol::{CheckRequest, Finding, HostFacts};
use blip_transport::units::ByteSize;
use std::fs;
use std::path::Path;

/// The oldest CRIU that blip trusts.
const CRIU_NEEDED: (i32, i32) = (4, 0);
/// The first kernel whose sockets CRIU before 4.2 cannot read.
const KERNEL_OF_CRIU_4_2: (u32, u32) = (6, 16);

/// Looks at this host.
pub async fn facts(docker: &Docker) -> Result<HostFacts, DockerError> {
    let criu = match Worker::version().await {
        Ok((major, minor, patch)) => format!("{major}.{minor}.{patch}"),
        Err(_) => String::new(),
    };
    Ok(HostFacts {
        blip: env!("CARGO_PKG_VERSION").to_owned(),
        docker: docker.version().await?,
        docker_experimental: docker.is_experimental().await?,
        criu,
        runc: runc_version(),
        kernel: kernel(),
        cpu: cpu_features(),
        cgroup: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
    })
}

/// What of a host's own equipment stands in the way.
pub fn equipment(facts: &HostFacts, side: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = parse_version(&facts.criu);
    match version {
        None => findings.push(Finding::blocker(
            format!("CRIU is missing on the {side}"),
            "install the package criu, version 4.2 or newer",
        )),
        Some(found) if found < CRIU_NEEDED => findings.push(Finding::blocker(
            format!("CRIU {} on the {side} is too old", facts.criu),
            "install CRIU 4.2 or newer",
        )),
        Some(found)
            if found < (4, 2)
                && parse_kernel(&facts.kernel).is_some_and(|k| k >= KERNEL_OF_CRIU_4_2) =>
        {
            findings.push(Finding::blocker(
                format!(
                    "CRIU {} on the {side} cannot read the sockets of Linux {}",
                    facts.criu, facts.kernel
                ),
                "install CRIU 4.2 or newer",
            ));
        }
        Some(_) => {}
    }
    if facts.runc.is_empty() {
        findings.push(Finding::blocker(
            format!("runc is missing on the {side}"),
            "install the package runc, or name it with BLIP_RUNC",
        ));
    }
    for program in ["nft", "nsenter"] {
        if side == "source" && !in_path(program) {
            findings.push(Finding::blocker(
                format!("{program} is missing on the {side}"),
                "install the packages nftables and util-linux",
            ));
        }
    }
    findings
}

/// Nothing else is worth saying then.
pub fn under_way(name: &str) -> Finding {
    Finding::blocker(
        format!("a move of '{name}' to the target is under way"),
        "wait for its end (blip status tells of it), or end it",
    )
}

/// Whether the container could live on this host. Touches nothing.
pub async fn target(
    docker: &Docker,
    facts: &HostFacts,
    remains: &Remains,
    request: &CheckRequest,
) -> Result<Vec<Finding>, DockerError> {
    let mut findings = equipment(facts, "target");
    if docker.inspect(&request.name).await.is_ok() {
        findings.push(Finding::blocker(
            format!("the target has a container named '{}' already", request.name),
            format!("rename or remove it there: docker rename {0} {0}.old", request.name),
        ));
    }
    findings.extend(image_store(docker, request).await?);
    for network in &request.networks {
        if docker.segment(network).await?.is_none() {
            findings.push(Finding::blocker(
                format!("the target has no Docker network '{network}'"),
                "create it there with the same driver and subnet",
            ));
        }
    }
    findings.extend(segment::check(docker, &request.wanted).await?);
    for link in &request.links {
        if !docker.inspect(link).await.is_ok_and(|found| found.running) {
            findings.push(Finding::blocker(
                format!(
                    "container '{}' is linked with '{link}', which does not run on the target",
                    request.name
                ),
                "move that one first, or run it there",
            ));
        }
    }
    findings.extend(mounts::check(docker, remains, &request.mounts).await?);
    findings.extend(mounts::room(docker, request.layer, &request.mounts).await?);
    findings.extend(room(request));
    findings.extend(apparmor::check(request));
    findings.extend(missing_cpu(&request.source.cpu, &facts.cpu));
    if request.source.kernel != facts.kernel {
        findings.push(Finding::note(
            format!("the kernels differ: {} here, {} there", request.source.kernel, facts.kernel),
            "usually fine from older to newer",
        ));
    }
    Ok(findings)
}

/// What this host has of the container's image.
pub async fn image(docker: &Docker, request: &CheckRequest) -> Result<Held, DockerError> {
    if docker.image_id(&request.image).await?.is_some() {
        return Ok(Held::Whole);
    }
    Ok(Held::Layers(docker.layers_held(&request.layers).await? as u32))
}

/// An image has one ID in Docker's own store and another in containerd's.
async fn image_store(
    docker: &Docker,
    request: &CheckRequest,
) -> Result<Option<Finding>, DockerError> {
    if docker.image_id(&request.image).await?.is_some()
        || docker.keeps_images_in_containerd().await? == request.containerd_images
    {
        return Ok(None);
    }
    let here = if request.containerd_images { "Docker's own store" } else { "containerd's store" };
    Ok(Some(Finding::blocker(
        format!(
            "the target lacks the image {} ({}) and keeps images in {here}, unlike the source",
            request.image_name, request.image
        ),
        "an image has another ID there: let both Dockers use the same store",
    )))
}

fn room(request: &CheckRequest) -> Option<Finding> {
    // The store and the restored memory exist side by side for a while, but
    // pages leave the store as they arrive in the container.
    let needed = ByteSize(request.memory.0 / 4 * 5 + (64 << 20));
    if memory::available() < needed {
        // Kept for what may never come; this one does.
        kept::forget_all();
    }
    let free = memory::available();
    (free < needed).then(|| {
        Finding::blocker(
            format!("the target has {free} of memory free; the container needs about {needed}"),
            "free memory there, or choose another target",
        )
    })
}

/// A program that found a feature at its start goes on using it.
fn missing_cpu(source: &[String], target: &[String]) -> Option<Finding> {
    // Only what changes what user programs may execute; the rest of the list
    // describes the kernel's and the hypervisor's business.
    let matters = |flag: &&String| {
        [
            "sse", "ssse", "avx", "fma", "bmi", "aes", "pclmul", "sha", "adx", "popcnt", "movbe",
            "f16c", "xsave", "gfni", "vaes", "amx", "rdrand", "rdseed", "erms", "fsrm", "asimd",
            "sve", "crc32", "atomics",
        ]
        .iter()
        .any(|prefix| flag.starts_with(prefix))
    };
    let missing: Vec<&str> = source
        .iter()
        .filter(matters)
        .filter(|flag| !target.contains(flag))
        .map(String::as_str)
        .collect();
    (!missing.is_empty()).then(|| {
        Finding::blocker(
            format!("the target's CPU lacks {}", missing.join(", ")),
            "choose a target of the same CPU family or a newer one",
        )
    })
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn cpu_features() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let list = line.and_then(|line| line.split_once(':')).map(|(_, list)| list).unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

fn runc_version() -> String {
    let Ok(runc) = crate::runtime::find_runc() else { return String::new() };
    let output = std::process::Command::new(runc).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("runc version").trim().to_owned()
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn parse_version(text: &str) -> Option<(i32, i32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn parse_kernel(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(criu: &str, kernel: &str) -> HostFacts {
        HostFacts {
            criu: criu.into(),
            kernel: kernel.into(),
            runc: "1.3".into(),
            ..HostFacts::default()
        }
    }

    #[test]
    fn an_old_criu_is_named_with_its_remedy() {
        let found = equipment(&facts("3.17.1", "6.1.0"), "target");
        assert!(found[0].blocks && found[0].what.contains("3.17.1"), "{found:?}");
        assert!(equipment(&facts("4.2.1", "6.18.44-x"), "target").is_empty());
        assert!(equipment(&facts("4.1.0", "6.12.0"), "target").is_empty());
        assert!(equipment(&facts("4.1.0", "6.18.44"), "target")[0].blocks);
        assert!(equipment(&facts("", "6.12.0"), "target")[0].what.contains("missing"));
    }

    #[test]
    fn only_features_that_programs_use_count() {
        let source = vec!["avx2".to_owned(), "tsc_adjust".to_owned()];
        assert!(missing_cpu(&source, &["sse".to_owned()]).unwrap().what.contains("avx2"));
        assert!(missing_cpu(&source, &["avx2".to_owned()]).is_none());
    }
}
