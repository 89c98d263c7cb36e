//! Images: what a host has, taking one out and putting one in.

use super::{Docker, DockerError, request};
use bollard::query_parameters as query;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::io;

impl Docker {
    /// The layers of an image by the digests of their plain content, lowest
    /// first.
    pub async fn image_layers(&self, id: &str) -> Result<Vec<String>, DockerError> {
        let found = self.api.inspect_image(id).await.map_err(request(format!("inspect {id}")))?;
        Ok(found.root_fs.and_then(|root| root.layers).unwrap_or_default())
    }

    /// How many of `layers`, from the lowest on, some image of this host has.
    /// None where images are kept by other digests than these.
    pub async fn layers_held(&self, layers: &[String]) -> Result<usize, DockerError> {
        if self.keeps_images_in_containerd().await? {
            return Ok(0);
        }
        let options = query::ListImagesOptionsBuilder::default().all(true).build();
        let all = self.api.list_images(Some(options)).await.map_err(request("list images"))?;
        let mut most = 0;
        for image in all {
            // One that goes meanwhile has nothing to offer.
            let theirs = self.image_layers(&image.id).await.unwrap_or_default();
            let same = layers.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs);
            most = most.max(same.count());
        }
        Ok(most)
    }

    /// Whether this Docker keeps images in containerd's store, where their IDs
    /// and archives are others than in its own.
    pub async fn keeps_images_in_containerd(&self) -> Result<bool, DockerError> {
        let info = self.api.info().await.map_err(request("tell how it keeps images"))?;
        let status = info.driver_status.unwrap_or_default();
        Ok(status.iter().flatten().any(|word| word.contains("containerd.snapshotter")))
    }

    /// The archive of an image, as `docker save` makes it.
    pub fn export(&self, id: &str) -> impl Stream<Item = Result<Bytes, DockerError>> + use<> {
        let failed = format!("export the image {id}");
        self.api.export_image(id).map(move |part| part.map_err(request(failed.clone())))
    }

    /// Loads an archive, as `docker load` does.
    pub async fn load(
        &self,
        archive: impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static,
    ) -> Result<(), DockerError> {
        let options = query::ImportImageOptionsBuilder::default().quiet(true).build();
        let mut said = Box::pin(self.api.import_image_stream(options, archive, None));
        while let Some(line) = said.try_next().await.map_err(request("load the image"))? {
            let error = line.error_detail.and_then(|detail| detail.message);
            if let Some(why) = error {
                let source = bollard::errors::Error::DockerStreamError { error: why };
                return Err(request("load the image")(source));
            }
        }
        Ok(())
    }

    /// Gives an image a name.
    pub async fn tag(&self, id: &str, name: &str) -> Result<(), DockerError> {
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (name, "latest"),
        };
        let options = query::TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
        let tagged = self.api.tag_image(id, Some(options)).await;
        tagged.map_err(request(format!("name the image {id} {name}")))
    }
}
