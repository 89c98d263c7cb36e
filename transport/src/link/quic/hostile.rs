//! A paired peer that misbehaves: every lie must end in a typed error, and
//! none may make us reserve what it claims.

use super::*;
use crate::identity::{Identity, Trust, client_tls};
use crate::link::LinkError;
use crate::units::ByteSize;
use quinn::crypto::rustls::QuicClientConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn hosts() -> (Identity, Identity) {
    (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap())
}

/// The liar and its victim, properly connected.
async fn pair() -> (Session, Session) {
    let (liar, victim) = hosts();
    let trust = Trust::only(liar.fingerprint());
    let mut listener = Listener::bind(anywhere(), &victim, trust, Settings::default()).unwrap();
    let trust = Trust::only(victim.fingerprint());
    let (addr, settings) = (listener.local_addr(), Settings::default());
    let (dialed, accepted) = tokio::join!(dial(addr, &liar, &trust, &settings), listener.accept());
    (dialed.unwrap(), accepted.unwrap().unwrap())
}

/// What the victim makes of a bulk stream of exactly these bytes.
async fn bulk(bytes: &[u8]) -> LinkError {
    let (liar, victim) = pair().await;
    let mut stream = liar.connection.raw().open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.finish().unwrap();
    let mut receiver = match victim.connection.accept_bulk().await {
        Ok(receiver) => receiver,
        Err(error) => return error,
    };
    if receiver.kind() == StreamKind::Blobs {
        let mut blobs = BlobReceiver::new(receiver);
        return blobs.next_whole(ByteSize(1 << 20)).await.unwrap_err();
    }
    loop {
        if let Err(error) = receiver.recv().await {
            let again = receiver.recv().await.unwrap_err();
            assert_eq!(error.to_string(), again.to_string(), "a broken stream stays broken");
            return error;
        }
    }
}

/// A frame as the layout says.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn head(kind: StreamKind) -> Vec<u8> {
    frame(&postcard::to_stdvec(&kind).unwrap())
}

#[tokio::test]
async fn lies_about_lengths_on_bulk_streams() {
    let pages = head(StreamKind::Pages(crate::units::Round(0)));
    let error = bulk(&u32::MAX.to_le_bytes()).await;
    assert!(
        matches!(error, LinkError::FrameTooBig { size: 0xffff_ffff, limit: 64, .. }),
        "{error:?}"
    );
    let error = bulk(&[&pages[..], &u32::MAX.to_le_bytes()].concat()).await;
    assert!(matches!(error, LinkError::FrameTooBig { stream: "pages", .. }), "{error:?}");
    let error = bulk(&[&pages[..], &frame(b"good"), &[9, 0, 0, 0, 1]].concat()).await;
    assert!(matches!(error, LinkError::Truncated { stream: "pages" }), "{error:?}");
    let error = bulk(&[&pages[..], &[9, 0]].concat()).await;
    assert!(matches!(error, LinkError::Truncated { stream: "pages" }), "{error:?}");
}

#[tokio::test]
async fn heads_that_are_none() {
    let error = bulk(&[]).await;
    assert!(matches!(error, LinkError::Ended { stream: "bulk" }), "{error:?}");
    let error = bulk(&frame(&[77])).await;
    assert!(matches!(error, LinkError::Malformed { stream: "bulk", .. }), "{error:?}");
    let error = bulk(&frame(&[2, 0, 0])).await;
    assert!(matches!(error, LinkError::Malformed { stream: "bulk", .. }), "{error:?}");
}

#[tokio::test]
async fn lies_about_blobs() {
    let blobs = head(StreamKind::Blobs);
    let blob = |name: &str, size: u64| frame(&postcard::to_stdvec(&(name, size)).unwrap());
    let error = bulk(&[&blobs[..], &blob("../../etc/passwd", 1)].concat()).await;
    assert!(matches!(error, LinkError::Malformed { stream: "blobs", .. }), "{error:?}");
    let error = bulk(&[&blobs[..], &blob("a", u64::MAX)].concat()).await;
    assert!(matches!(error, LinkError::FrameTooBig { stream: "blobs", .. }), "{error:?}");
    let error = bulk(&[&blobs[..], &blob("a", 3), &frame(b"four")].concat()).await;
    assert!(matches!(error, LinkError::Malformed { stream: "blobs", .. }), "{error:?}");
    let error = bulk(&[&blobs[..], &blob("a", 3), &frame(b"")].concat()).await;
    assert!(matches!(error, LinkError::Malformed { stream: "blobs", .. }), "{error:?}");
    let error = bulk(&[&blobs[..], &blob("a", 8), &frame(b"four")].concat()).await;
    assert!(matches!(error, LinkError::Truncated { stream: "blobs" }), "{error:?}");
}

#[tokio::test]
async fn lies_on_the_control_stream() {
    let (liar, mut victim) = pair().await;
    let (mut sender, _receiver) = liar.control.split();
    sender.raw().write_all(&(16 * 1024 * 1024 + 1_u32).to_le_bytes()).await.unwrap();
    let error = victim.control.recv::<u8>().await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { stream: "control", .. }), "{error:?}");

    // A vector that claims more elements than any memory holds.
    let (liar, mut victim) = pair().await;
    let (mut sender, _receiver) = liar.control.split();
    let claim = frame(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    sender.raw().write_all(&claim).await.unwrap();
    let error = victim.control.recv::<Vec<u64>>().await.unwrap_err();
    assert!(matches!(error, LinkError::Malformed { stream: "control", .. }), "{error:?}");
}

#[tokio::test]
async fn lies_on_the_urgent_stream() {
    let (liar, victim) = pair().await;
    let (mut send, _receive) = liar.connection.raw().open_bi().await.unwrap();
    send.write_all(&frame(b"short")).await.unwrap();
    let mut server = victim.connection.accept_urgent().await.unwrap();
    let error = server.next::<u8>().await.unwrap_err();
    assert!(matches!(error, LinkError::Malformed { stream: "urgent", .. }), "{error:?}");
    send.write_all(&100_000_u32.to_le_bytes()).await.unwrap();
    let error = server.next::<u8>().await.unwrap_err();
    assert!(matches!(error, LinkError::FrameTooBig { stream: "urgent", .. }), "{error:?}");

    for answer in [frame(b"short"), frame(&77_u64.to_le_bytes()), u32::MAX.to_le_bytes().to_vec()] {
        let urgent = victim.connection.open_urgent().await.unwrap();
        let question = urgent.clone();
        let waiting = tokio::spawn(async move { question.request(&1_u8).await });
        let (mut send, _receive) = liar.connection.raw().accept_bi().await.unwrap();
        send.write_all(&answer).await.unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert!(
            matches!(error, LinkError::Malformed { .. } | LinkError::FrameTooBig { .. }),
            "{error:?}"
        );
        let later = urgent.request(&1_u8).await.unwrap_err();
        assert_eq!(later.to_string(), error.to_string(), "later questions fail alike");
    }
}

/// A dialer that is paired, and does what it likes after the handshake.
async fn raw_dial(
    listener: &Listener,
    liar: &Identity,
    victim: &Identity,
    alpn: &[u8],
) -> quinn::Connecting {
    let (mut tls, _) = client_tls(liar, vec![victim.fingerprint()]).unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client(anywhere()).unwrap();
    endpoint.connect_with(config, listener.local_addr(), settings::SERVER_NAME).unwrap()
}

#[tokio::test]
async fn who_says_no_hello_does_not_come_in() {
    let (liar, victim) = hosts();
    let impatient = Settings { connect_timeout: Duration::from_millis(400), ..Settings::default() };
    let trust = Trust::only(liar.fingerprint());
    let mut listener = Listener::bind(anywhere(), &victim, trust, impatient).unwrap();

    let quic = raw_dial(&listener, &liar, &victim, b"blip").await.await.unwrap();
    let (mut send, _receive) = quic.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = listener.accept().await.unwrap().err().unwrap();
    assert!(matches!(error, LinkError::NotBlip { .. }), "{error:?}");

    let _silent = raw_dial(&listener, &liar, &victim, b"blip").await.await.unwrap();
    let error = listener.accept().await.unwrap().err().unwrap();
    assert!(matches!(error, LinkError::Handshake { .. }), "{error:?}");

    assert!(raw_dial(&listener, &liar, &victim, b"h3").await.await.is_err());
    let error = listener.accept().await.unwrap().err().unwrap();
    assert!(matches!(error, LinkError::NotBlip { .. }), "{error:?}");
}

#[tokio::test]
async fn a_slow_newcomer_delays_nobody() {
    let (host, victim) = hosts();
    let trust = Trust::only(host.fingerprint());
    let mut listener = Listener::bind(anywhere(), &victim, trust, Settings::default()).unwrap();
    let _silent = raw_dial(&listener, &host, &victim, b"blip").await.await.unwrap();
    let (addr, trust) = (listener.local_addr(), Trust::only(victim.fingerprint()));
    dial(addr, &host, &trust, &Settings::default()).await.unwrap();
    listener.accept().await.unwrap().unwrap();
}
