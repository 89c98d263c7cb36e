//! HTTP/1.1 over one connection, heads by the `httparse` crate.

use super::{Answer, Cut, Cutter, Dialect, Parse};

/// `GET /KEY`, and `POST /count/KEY` where there is an application that counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// A request.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head = format!("{method} /{path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len}\r\n\r\n");
    let mut words = head.into_bytes();
    words.extend(body);
    words
}

impl Dialect for Http {
    fn count(&self, key: &str) -> Vec<u8> {
        request("POST", &format!("count/{key}"), b"")
    }

    fn read(&self, key: &str) -> Vec<u8> {
        format!("GET /{key} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
    }

    fn look(&self, key: &str) -> Vec<u8> {
        self.read(&format!("count/{key}"))
    }

    fn parser(&self) -> Box<dyn Parse> {
        Box::new(Cutter::new(cut))
    }
}

fn cut(bytes: &[u8]) -> Cut {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes).map_err(|e| format!("no answer of HTTP: {e}"))? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let code = response.code.unwrap_or_default();
    let named = |name: &str| {
        let header = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        header.map(|h| String::from_utf8_lossy(h.value).trim().to_owned())
    };
    let len = match named("Content-Length") {
        Some(len) => len.parse().map_err(|_| format!("a body of length `{len}`"))?,
        None if code == 204 => 0_usize,
        None => return Err(format!("an answer ({code}) that does not say how long it is")),
    };
    if bytes.len() < head + len {
        return Ok(None);
    }
    let answer = if (200..300).contains(&code) {
        Answer::Content(bytes[head..head + len].to_vec())
    } else {
        Answer::Refused(format!("HTTP status {code}"))
    };
    Ok(Some((head + len, Some(answer))))
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_pieces;
    use super::*;

    #[test]
    fn bodies_are_as_long_as_is_said() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx\
                      HTTP/1.1 204 Done\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 0\r\nLocation: /a\r\n\r\n";
        let answers = in_pieces(&Http, bytes);
        assert_eq!(answers[0].number(), Some(42));
        assert_eq!(answers[1], Answer::Refused("HTTP status 404".to_owned()));
        assert_eq!(answers[2..], [Answer::Content(vec![]), Answer::Content(vec![])]);
        let asked = request("PUT", "a", b"xy");
        assert!(asked.starts_with(b"PUT /a HTTP/1.1\r\n") && asked.ends_with(b"\r\n\r\nxy"));
    }
}
