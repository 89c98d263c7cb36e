//! The AppArmor profile that confines a container, and whether this host can
//! confine it likewise.
//!
//! CRIU keeps the profile's name and asks the kernel for it in the restore, with
//! everything frozen; so what would fail there is found here.

use crate::protocol::{CheckRequest, Finding};
use std::fs;

/// Where the kernel lists the profiles it has: `NAME (MODE)`, a line each.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// What Docker calls having none.
const UNCONFINED: &str = "unconfined";

/// What the kernel of this host knows of AppArmor.
enum Here {
    Without,
    /// With it; the list of profiles, if that can be read.
    With(Option<String>),
}

/// What stands in the way of confining the container here as it is there.
pub(super) fn check(request: &CheckRequest) -> Option<Finding> {
    finding(&request.name, &request.apparmor, &here())
}

fn here() -> Here {
    match fs::read_to_string(ENABLED) {
        Ok(enabled) if enabled.trim() == "Y" => Here::With(fs::read_to_string(PROFILES).ok()),
        _ => Here::Without,
    }
}

fn finding(name: &str, profile: &str, here: &Here) -> Option<Finding> {
    let confined = !matches!(profile, "" | UNCONFINED);
    match here {
        Here::Without if confined => Some(Finding::blocker(
            format!(
                "container '{name}' is confined by the AppArmor profile '{profile}', and the \
                 target's kernel has no AppArmor"
            ),
            "choose a target with AppArmor, or recreate the container with --security-opt \
             apparmor=unconfined",
        )),
        Here::With(Some(profiles)) if confined && !lists(profiles, profile) => {
            Some(Finding::blocker(
                format!(
                    "container '{name}' is confined by the AppArmor profile '{profile}', which \
                     is not loaded on the target"
                ),
                "copy its file there and load it: apparmor_parser --replace FILE",
            ))
        }
        Here::With(_) if profile.is_empty() => Some(Finding::note(
            format!("no AppArmor profile confines container '{name}' on the source"),
            "nor will one on the target, until it is started anew there: then Docker confines it",
        )),
        _ => None,
    }
}

fn lists(profiles: &str, wanted: &str) -> bool {
    profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_is_not_there_stands_in_the_way() {
        let loaded = || Here::With(Some("docker-default (enforce)\n/bin/a b (complain)\n".into()));
        let blocks = |profile, here| finding("web", profile, &here).map(|found| found.blocks);
        assert_eq!(blocks("docker-default", loaded()), None);
        assert_eq!(blocks("/bin/a b", loaded()), None);
        assert_eq!(blocks("docker", loaded()), Some(true));
        assert_eq!(blocks("docker-default", Here::Without), Some(true));
        assert_eq!(blocks("docker-default", Here::With(None)), None);
        for here in [loaded(), Here::Without] {
            assert_eq!(blocks(UNCONFINED, here), None);
        }
        assert_eq!(blocks("", Here::Without), None);
        assert_eq!(blocks("", loaded()), Some(false));
    }
}
