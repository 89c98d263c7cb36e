//! PostgreSQL's protocol, version 3, simple queries only: each is a
//! transaction of its own, committed before it is answered.

use super::{Answer, Cut, Cutter, Dialect, Parse};

/// Counters and contents in two tables; see [`TABLES`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Postgres;

/// Makes the tables.
pub const TABLES: &str = "create table counters (key text primary key, n bigint not null) \
                          with (fillfactor = 50)";

/// A query.
pub fn query(sql: &str) -> Vec<u8> {
    message(Some(b'Q'), &[sql.as_bytes(), b"\0"].concat())
}

fn message(tag: Option<u8>, body: &[u8]) -> Vec<u8> {
    let mut words: Vec<u8> = tag.into_iter().collect();
    words.extend((body.len() as u32 + 4).to_be_bytes());
    words.extend(body);
    words
}

impl Dialect for Postgres {
    fn greeting(&self) -> Vec<u8> {
        let version: u32 = 3 << 16;
        let who = b"user\0postgres\0database\0postgres\0\0";
        message(None, &[&version.to_be_bytes()[..], who].concat())
    }

    /// The counter must be there.
    fn count(&self, key: &str) -> Vec<u8> {
        query(&format!("update counters set n = n + 1 where key = '{key}' returning n"))
    }

    fn read(&self, key: &str) -> Vec<u8> {
        query(&format!("select n from counters where key = '{key}'"))
    }

    fn parser(&self) -> Box<dyn Parse> {
        Box::new(Cutter::new(cut))
    }
}

/// Everything up to `ReadyForQuery` is one answer: the first field of the last
/// row, or the error. A greeting is answered without either.
fn cut(bytes: &[u8]) -> Cut {
    let mut at = 0;
    let mut answer = None;
    loop {
        let Some(head) = bytes.get(at..at + 5) else { return Ok(None) };
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len < 4 {
            return Err("a message shorter than its own length".to_owned());
        }
        let Some(body) = bytes.get(at + 5..at + 1 + len) else { return Ok(None) };
        at += 1 + len;
        match head[0] {
            b'Z' => return Ok(Some((at, answer))),
            b'D' => answer = Some(Answer::Content(first_field(body)?)),
            b'E' => answer = Some(Answer::Refused(complaint(body))),
            // A command that gives no rows is done.
            b'C' if answer.is_none() => answer = Some(Answer::Content(Vec::new())),
            b'R' if body != [0, 0, 0, 0] => return Err("the server wants a password".to_owned()),
            _ => {}
        }
    }
}

/// Number of fields, then of each its length and bytes.
fn first_field(row: &[u8]) -> Result<Vec<u8>, String> {
    let short = || "a row that is too short".to_owned();
    let len = row.get(2..6).ok_or_else(short)?;
    let len = i32::from_be_bytes([len[0], len[1], len[2], len[3]]);
    let Ok(len) = usize::try_from(len) else { return Ok(Vec::new()) };
    row.get(6..6 + len).map(<[u8]>::to_vec).ok_or_else(short)
}

/// Fields of a letter and a text; `M` is the message.
fn complaint(body: &[u8]) -> String {
    let mut fields = body.split(|b| *b == 0);
    let message = fields.find_map(|f| f.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or(b"an error without words")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_pieces;
    use super::*;

    #[test]
    fn a_greeting_is_no_answer_and_rows_and_errors_are() {
        let tagged = |tag: u8, body: &[u8]| message(Some(tag), body);
        let ready = tagged(b'Z', b"I");
        let row = [&1_u16.to_be_bytes()[..], &2_u32.to_be_bytes(), b"42"].concat();
        let bytes = [
            tagged(b'R', &[0; 4]),
            tagged(b'S', b"server_version\x0017\0"),
            ready.clone(),
            tagged(b'T', b"anything"),
            tagged(b'D', &row),
            tagged(b'C', b"UPDATE 1\0"),
            ready.clone(),
            tagged(b'E', b"SERROR\0Mno such table\0\0"),
            ready.clone(),
            tagged(b'C', b"CREATE TABLE\0"),
            ready,
        ];
        let answers = in_pieces(&Postgres, &bytes.concat());
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0].number(), Some(42));
        assert_eq!(answers[1], Answer::Refused("no such table".to_owned()));
        assert_eq!(answers[2], Answer::Content(Vec::new()));
    }
}
