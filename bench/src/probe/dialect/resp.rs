//! Redis' protocol, by the `redis` crate; the memory writer speaks it, too.

use std::io::Read;

use redis::Value;

use super::{Answer, Dialect, Parse};

/// `INCR` and `GET`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resp;

impl Dialect for Resp {
    fn count(&self, key: &str) -> Vec<u8> {
        redis::cmd("INCR").arg(key).get_packed_command()
    }

    fn read(&self, key: &str) -> Vec<u8> {
        redis::cmd("GET").arg(key).get_packed_command()
    }

    /// The writer knows no `GET`.
    fn look(&self, key: &str) -> Vec<u8> {
        redis::cmd("MGET").arg(key).get_packed_command()
    }

    fn parser(&self) -> Box<dyn Parse> {
        Box::new(Replies(redis::Parser::new()))
    }
}

struct Replies(redis::Parser);

impl Parse for Replies {
    fn next(&mut self, from: &mut dyn Read) -> Result<Option<Answer>, String> {
        match self.0.parse_value(from) {
            Ok(value) => understood(value).map(Some),
            Err(e) if e.is_timeout() => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

fn understood(value: Value) -> Result<Answer, String> {
    match value {
        Value::Int(number) => Ok(Answer::Count(u64::try_from(number).unwrap_or_default())),
        Value::BulkString(content) => Ok(Answer::Content(content)),
        Value::ServerError(why) => Ok(Answer::Refused(format!("{why:?}"))),
        Value::Nil => Ok(Answer::Refused("there is no such key".to_owned())),
        Value::Array(mut only) if only.len() == 1 => understood(only.remove(0)),
        other => Err(format!("an answer that is no number: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_pieces;
    use super::*;

    #[test]
    fn answers_are_numbers_contents_and_errors() {
        let bytes = b":7\r\n$3\r\nabc\r\n-ERR no\r\n$-1\r\n*1\r\n$2\r\n42\r\n";
        let answers = in_pieces(&Resp, bytes);
        assert_eq!(answers[..2], [Answer::Count(7), Answer::Content(b"abc".to_vec())]);
        assert!(matches!(answers[2..4], [Answer::Refused(_), Answer::Refused(_)]));
        assert_eq!(answers[4].number(), Some(42));
    }
}
