//! The container's image, for a target that lacks it.
//!
//! The source streams the archive that `docker save` makes, without the layers
//! the target says it has below some other image: a layer is named by the
//! digest of its content, and Docker looks it up before it reads the archive.
//! The same image then has the same ID. Images stay when a migration fails:
//! they are what they are, and the next attempt needs them.

mod archive;

pub use archive::Without;

use crate::docker::{Docker, DockerError};
use blip_transport::link::LinkError;
use blip_transport::link::quic::{BulkReceiver, Connection, Priority, StreamKind};
use blip_transport::units::ByteSize;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::sync::mpsc;

/// Bytes of the archive in one frame, before compression.
const FRAME: usize = 1 << 20;
/// zstd level: layers are text and programs, links are slow.
const LEVEL: i32 = 3;
/// Frames that may wait for the compressor, the link or Docker.
const QUEUE: usize = 4;

/// What the target has of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Held {
    /// All of it.
    Whole,
    /// So many of its layers, from the lowest on.
    Layers(u32),
}

/// An image on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrder {
    /// Its ID.
    pub id: String,
    /// What the container calls it.
    pub name: String,
}

/// Why an image did not get there.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Docker.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// zstd.
    #[error("cannot pack the image: {0}")]
    Pack(io::Error),
    /// A thread of ours panicked.
    #[error("packing the image panicked: {0}")]
    Panic(#[from] tokio::task::JoinError),
    /// Something else came.
    #[error("the source sent {0} instead of an image")]
    Unexpected(String),
    /// It is another one now.
    #[error(
        "Docker loaded the image but does not know it as {id}: the hosts keep images in different stores"
    )]
    Another {
        /// The ID it should have.
        id: String,
    },
}

/// Sends the archive of image `id` but for its lowest `held` layers. `tell`
/// hears now and then how many bytes of the archive have gone. Returns these
/// and the bytes on the wire.
pub async fn send(
    docker: &Docker,
    link: &Connection,
    id: &str,
    held: usize,
    mut tell: impl FnMut(ByteSize),
) -> Result<(ByteSize, ByteSize), ImageError> {
    let layers = docker.image_layers(id).await?;
    let known = layers.iter().take(held);
    let names =
        known.filter_map(|layer| Some(format!("blobs/sha256/{}", layer.strip_prefix("sha256:")?)));
    let mut without = Without::new(names.collect());
    let (to_pack, parts) = mpsc::channel::<Vec<u8>>(QUEUE);
    let (packed, mut frames) = mpsc::channel::<Bytes>(QUEUE);
    let packing = tokio::task::spawn_blocking(move || pack(parts, &packed));
    let archive = docker.export(id);
    let reading = async {
        let mut archive = std::pin::pin!(archive);
        let mut waiting = Vec::new();
        while let Some(part) = archive.next().await {
            waiting.extend(without.pass(&part?));
            while waiting.len() >= FRAME {
                let rest = waiting.split_off(FRAME);
                // Nobody takes it: the sender knows why.
                let _ = to_pack.send(std::mem::replace(&mut waiting, rest)).await;
            }
        }
        let _ = to_pack.send(waiting).await;
        drop(to_pack);
        Ok::<_, ImageError>(())
    };
    let sending = async {
        let mut stream = link.open_bulk(StreamKind::Image, Priority::BULK).await?;
        let mut wire = ByteSize(0);
        while let Some(frame) = frames.recv().await {
            wire += ByteSize(frame.len() as u64);
            stream.send(frame).await?;
            tell(wire);
        }
        Ok::<_, ImageError>((stream, wire))
    };
    let (_, (stream, wire)) = tokio::try_join!(reading, sending)?;
    let plain = packing.await??;
    // Only now: an archive that broke off must not look whole.
    stream.finish();
    Ok((plain, wire))
}

fn pack(
    mut parts: mpsc::Receiver<Vec<u8>>,
    to: &mpsc::Sender<Bytes>,
) -> Result<ByteSize, ImageError> {
    let mut packer = zstd::bulk::Compressor::new(LEVEL).map_err(ImageError::Pack)?;
    let mut plain = ByteSize(0);
    while let Some(part) = parts.blocking_recv() {
        plain += ByteSize(part.len() as u64);
        let frame = packer.compress(&part).map_err(ImageError::Pack)?;
        if to.blocking_send(frame.into()).is_err() {
            break;
        }
    }
    Ok(plain)
}

/// Takes in the image that comes on the next stream of `link`.
pub async fn receive(
    docker: &Docker,
    link: &Connection,
    order: &ImageOrder,
) -> Result<(), ImageError> {
    let stream = link.accept_bulk().await?;
    if stream.kind() != StreamKind::Image {
        return Err(ImageError::Unexpected(format!("{:?}", stream.kind())));
    }
    let (to, from) = mpsc::channel::<Result<Bytes, io::Error>>(QUEUE);
    let unpacking = unpack(stream, to);
    let parts = futures_util::stream::unfold(from, |mut from| async move {
        from.recv().await.map(|part| (part, from))
    });
    let (unpacked, loaded) = tokio::join!(unpacking, docker.load(parts));
    // What Docker says of an archive that broke off tells less.
    unpacked?;
    loaded?;
    if docker.image_id(&order.id).await?.as_deref() != Some(&order.id) {
        return Err(ImageError::Another { id: order.id.clone() });
    }
    // A name that means another image here goes on meaning it.
    if order.name != order.id && docker.image_id(&order.name).await?.is_none() {
        docker.tag(&order.id, &order.name).await?;
    }
    Ok(())
}

async fn unpack(
    mut stream: BulkReceiver,
    to: mpsc::Sender<Result<Bytes, io::Error>>,
) -> Result<(), ImageError> {
    loop {
        let frame = match stream.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) => {
                // Without this Docker would take the archive for complete.
                let _ = to.send(Err(io::Error::other(error.to_string()))).await;
                return Err(error.into());
            }
        };
        match zstd::bulk::decompress(&frame, FRAME) {
            Ok(plain) => drop(to.send(Ok(plain.into())).await),
            Err(error) => {
                let _ = to.send(Err(io::Error::other(error.to_string()))).await;
                return Err(ImageError::Pack(error));
            }
        }
    }
}
