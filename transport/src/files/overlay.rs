//! What the private marks in an overlay's upper directory mean. Pure.
//!
//! Source: the kernel's `Documentation/filesystems/overlayfs.rst`.

use super::wire::Xattr;

/// What is being walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// An ordinary directory, such as a volume.
    Plain,
    /// The upper directory of an overlay mount, such as Docker's `diff`.
    Upper(Marks),
}

/// Under which names an overlay mount keeps its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`, the default.
    Trusted,
    /// `user.overlay.*`, of mounts with the option `userxattr`.
    User,
}

impl Marks {
    fn prefix(self) -> &'static [u8] {
        match self {
            Marks::Trusted => b"trusted.overlay.",
            Marks::User => b"user.overlay.",
        }
    }
}

/// What an entry's marks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The directory hides whatever is below it.
    pub(super) opaque: bool,
    /// The empty file stands for "nothing is here".
    pub(super) whiteout: bool,
    /// A mark whose meaning is in a lower directory.
    pub(super) elsewhere: Option<&'static str>,
}

/// Takes overlay's own marks out of `xattrs` and says what they mean; marks
/// that were escaped, because they belong to an overlay inside the container,
/// get their own names back.
pub(super) fn interpret(tree: Tree, xattrs: &mut Vec<Xattr>) -> Said {
    let mut said = Said::default();
    let Tree::Upper(marks) = tree else { return said };
    let prefix = marks.prefix();
    xattrs.retain_mut(|xattr| {
        let Some(mark) = xattr.name.strip_prefix(prefix) else { return true };
        match mark {
            b"opaque" => said.opaque = xattr.value == b"y",
            b"whiteout" => said.whiteout = true,
            b"redirect" => said.elsewhere = Some("redirect"),
            b"metacopy" => said.elsewhere = Some("metacopy"),
            _ => {
                if let Some(inner) = mark.strip_prefix(b"overlay.") {
                    xattr.name = [prefix, inner].concat();
                    return true;
                }
            }
        }
        false
    });
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &str) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    #[test]
    fn own_marks_speak_and_vanish_others_stay() {
        let mut xattrs = vec![
            xattr("trusted.overlay.opaque", "y"),
            xattr("trusted.overlay.origin", "?"),
            xattr("trusted.overlay.overlay.opaque", "y"),
            xattr("user.overlay.opaque", "y"),
            xattr("user.mine", "1"),
        ];
        let said = interpret(Tree::Upper(Marks::Trusted), &mut xattrs);
        assert_eq!(said, Said { opaque: true, ..Said::default() });
        let names: Vec<_> = xattrs.iter().map(|x| x.name.as_slice()).collect();
        assert_eq!(names, [&b"trusted.overlay.opaque"[..], b"user.overlay.opaque", b"user.mine"]);
    }

    #[test]
    fn a_plain_tree_has_no_marks() {
        let mut xattrs = vec![xattr("trusted.overlay.opaque", "y")];
        assert_eq!(interpret(Tree::Plain, &mut xattrs), Said::default());
        assert_eq!(xattrs.len(), 1);
    }

    #[test]
    fn a_directory_that_only_holds_whiteouts_is_not_opaque() {
        let mut xattrs = vec![xattr("trusted.overlay.opaque", "x")];
        assert!(!interpret(Tree::Upper(Marks::Trusted), &mut xattrs).opaque);
    }
}
