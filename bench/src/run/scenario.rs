//! What is moved: a workload and the load on it, by name.

use serde::{Deserialize, Serialize};

use crate::quantity;
use crate::workload::writer::WriterSpec;

/// A workload under load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name, part of file names.
    pub name: String,
    /// What runs in the container.
    #[serde(flatten)]
    pub load: Load,
}

/// What runs in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Redis with this many bytes of data; in a plan, `redis = "256MiB"`.
    Redis(Size),
    /// The memory writer; in a plan, `writer = "--size 1GiB --rate 200MB/s"`.
    Writer(Words),
}

/// A size as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    text: String,
    /// In bytes.
    pub bytes: u64,
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { bytes: quantity::size(&text)?, text })
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.text
    }
}

/// The writer's options, as on its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Words {
    text: String,
    /// What they mean.
    pub spec: WriterSpec,
}

impl TryFrom<String> for Words {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { spec: WriterSpec::parse(&text)?, text })
    }
}

impl From<Words> for String {
    fn from(words: Words) -> String {
        words.text
    }
}

/// Name, and what is moved.
const BUILT_IN: [(&str, &str); 11] = [
    ("redis-64m", "64MiB"),
    ("redis-256m", "256MiB"),
    ("redis-1g", "1GiB"),
    ("redis-4g", "4GiB"),
    ("idle-1g", "--size 1GiB"),
    ("hot-64m-in-1g", "--size 1GiB --hot 64MiB --rate 200MB/s"),
    ("fast-1g", "--size 1GiB --hot 512MiB --rate 400MB/s --fill random"),
    ("sequential-1g", "--size 1GiB --rate 100MB/s --pattern sequential"),
    ("zipf-1g", "--size 1GiB --rate 200MB/s --pattern zipf"),
    ("phases-1g", "--size 1GiB --hot 64MiB --rate 200MB/s --pattern phases"),
    // Small and quick: for trying the bench out, not for numbers.
    ("tiny", "--size 16MiB --hot 4MiB --rate 20MB/s"),
];

impl Scenario {
    /// The built-in scenario of this name.
    ///
    /// # Errors
    /// The names there are.
    pub fn named(name: &str) -> Result<Scenario, String> {
        let Some((_, what)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            return Err(format!("there is no scenario `{name}`: there are {}", known.join(", ")));
        };
        let what = (*what).to_owned();
        let load = if what.starts_with('-') {
            Load::Writer(what.try_into()?)
        } else {
            Load::Redis(what.try_into()?)
        };
        Ok(Scenario { name: name.to_owned(), load })
    }

    /// What it is, in a few words.
    pub fn describe(&self) -> String {
        match &self.load {
            Load::Redis(size) => format!("Redis with {} of data", size.text),
            Load::Writer(words) => format!("writer {}", words.text),
        }
    }

    /// Bytes of memory the workload holds.
    pub fn memory(&self) -> u64 {
        match &self.load {
            Load::Redis(size) => size.bytes,
            Load::Writer(words) => words.spec.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_is_well_formed_and_keeps_its_name() {
        for (name, _) in BUILT_IN {
            let scenario = Scenario::named(name).expect(name);
            assert_eq!(scenario.name, name);
            assert!(scenario.memory() >= 16 << 20);
        }
        let why = Scenario::named("redis").expect_err("no such");
        assert!(why.contains("redis-64m"), "{why}");
    }
}
