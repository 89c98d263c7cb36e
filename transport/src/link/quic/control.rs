//! The control stream: commands and their answers, ahead of everything else.

use super::frame::{FrameReader, FrameWriter, decode};
use super::settings::Priority;
use crate::link::LinkError;
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest control message, encoded.
pub const MAX_CONTROL_FRAME: usize = 16 << 20;

const NAME: &str = "control";

/// Both directions of the control stream.
pub struct Control {
    sender: ControlSender,
    receiver: ControlReceiver,
}

/// The outgoing half.
pub struct ControlSender(FrameWriter);

/// The incoming half.
pub struct ControlReceiver(FrameReader);

impl Control {
    pub(super) fn new(send: SendStream, receive: RecvStream) -> Self {
        Self {
            sender: ControlSender(FrameWriter::new(
                send,
                NAME,
                MAX_CONTROL_FRAME,
                Priority::CONTROL.0,
            )),
            receiver: ControlReceiver(FrameReader::new(receive, NAME, MAX_CONTROL_FRAME)),
        }
    }

    /// See [`ControlSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// See [`ControlReceiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        self.receiver.recv().await
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }
}

impl ControlSender {
    #[cfg(test)]
    pub(super) fn raw(&mut self) -> &mut SendStream {
        self.0.raw()
    }

    /// Sends `message`. Not cancel-safe: see [the module](super).
    ///
    /// # Errors
    /// The connection is lost, the other end reads no more, or the message
    /// exceeds [`MAX_CONTROL_FRAME`].
    pub async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), LinkError> {
        self.0.send_message(message).await
    }

    /// Sends nothing more, and waits until the other host holds every message:
    /// to be done before [`Connection::close`](super::Connection::close), which
    /// throws away what is still on its way.
    ///
    /// # Errors
    /// The connection is lost first, or the other end reads no more.
    pub async fn finish(mut self) -> Result<(), LinkError> {
        self.0.finish_delivered().await
    }
}

impl ControlReceiver {
    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, the other end has finished, or what came is no
    /// `T` (then the message is consumed, and the next can be read) or larger
    /// than [`MAX_CONTROL_FRAME`] (then the stream is done for).
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        let frame = self.0.expect().await?;
        decode(&frame, NAME)
    }
}
