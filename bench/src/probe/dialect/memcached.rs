//! memcached's text protocol.

use super::{Answer, Cut, Cutter, Dialect, Parse};

/// `incr` and `get`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memcached;

/// Puts a value in place.
pub fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let mut words = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
    words.extend(value);
    words.extend(b"\r\n");
    words
}

impl Dialect for Memcached {
    /// The counter must be there.
    fn count(&self, key: &str) -> Vec<u8> {
        format!("incr {key} 1\r\n").into_bytes()
    }

    fn read(&self, key: &str) -> Vec<u8> {
        format!("get {key}\r\n").into_bytes()
    }

    fn parser(&self) -> Box<dyn Parse> {
        Box::new(Cutter::new(cut))
    }
}

fn cut(bytes: &[u8]) -> Cut {
    let Some(line) = bytes.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
    let (text, line) = (String::from_utf8_lossy(&bytes[..line]), line + 2);
    let mut words = text.split(' ');
    let answer = match words.next().unwrap_or_default() {
        "VALUE" => return value(bytes, line, words.nth(2)),
        "STAT" => return statistics(bytes),
        "STORED" => Answer::Content(Vec::new()),
        "END" | "NOT_FOUND" => Answer::Refused("there is no such key".to_owned()),
        number if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() => {
            Answer::Count(number.parse().map_err(|_| format!("not a counter's value: {number}"))?)
        }
        _ => Answer::Refused(text.into_owned()),
    };
    Ok(Some((line, Some(answer))))
}

/// `VALUE key flags bytes`, the bytes, `END`.
fn value(bytes: &[u8], line: usize, len: Option<&str>) -> Cut {
    let len = len.and_then(|len| len.parse::<usize>().ok());
    let len = len.ok_or("a VALUE without its length")?;
    let whole = line + len + b"\r\nEND\r\n".len();
    if bytes.len() < whole {
        return Ok(None);
    }
    if bytes[line + len..whole] != *b"\r\nEND\r\n" {
        return Err("a value that does not end where it should".to_owned());
    }
    Ok(Some((whole, Some(Answer::Content(bytes[line..line + len].to_vec())))))
}

/// `STAT name value` …, `END`.
fn statistics(bytes: &[u8]) -> Cut {
    let end = bytes.windows(5).position(|w| w == b"END\r\n");
    Ok(end.map(|end| (end + 5, Some(Answer::Content(bytes[..end].to_vec())))))
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_pieces;
    use super::*;

    #[test]
    fn values_may_hold_anything() {
        let bytes = b"7\r\nVALUE k 0 9\r\nEND\r\nEND\r\r\nEND\r\nEND\r\nSTORED\r\nSERVER_ERROR out of memory\r\n\
                      STAT pid 1\r\nSTAT uptime 2\r\nEND\r\n";
        let answers = in_pieces(&Memcached, bytes);
        assert_eq!(answers[0], Answer::Count(7));
        assert_eq!(answers[1], Answer::Content(b"END\r\nEND\r".to_vec()));
        assert!(matches!(answers[2], Answer::Refused(_)));
        assert_eq!(answers[3], Answer::Content(Vec::new()));
        assert_eq!(answers[4], Answer::Refused("SERVER_ERROR out of memory".to_owned()));
        assert!(matches!(&answers[5], Answer::Content(text) if text.starts_with(b"STAT pid 1")));
        assert_eq!(set("k", b"ab"), b"set k 0 0 2\r\nab\r\n");
    }
}
