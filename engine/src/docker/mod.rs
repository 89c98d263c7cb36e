//! Docker, as far as blip needs it: looking at a container, making the same one
//! elsewhere, and standing in as its runtime.

mod create;
mod daemon;
mod image;
mod segment;
mod volume;

pub use create::{Copy, is_bound};
pub use daemon::{DaemonError, register_runtime};
pub use segment::Segment;
pub use volume::VolumeUser;

use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerUpdateBody, EndpointSettings, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters as query;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Docker's answer when it is not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// No daemon answers.
    #[error("cannot reach the Docker daemon: {0}; is it running, and may this user use it?")]
    Unreachable(#[source] Error),
    /// A request failed.
    #[error("Docker could not {what}: {source}")]
    Request {
        /// What was asked for.
        what: String,
        /// Its answer.
        source: Error,
    },
    /// There is no such container.
    #[error("no container '{name}' on this host; `docker ps` lists those that run")]
    NoContainer {
        /// What was looked for.
        name: String,
    },
    /// What Docker says of a container makes no sense.
    #[error("Docker's description of {name} lacks {what}")]
    Incomplete {
        /// The container.
        name: String,
        /// What is missing.
        what: &'static str,
    },
}

/// The Docker daemon of this host.
#[derive(Clone, Debug)]
pub struct Docker {
    api: bollard::Docker,
}

/// What Docker knows of a container.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Its full ID.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// Its init on this host; 0 if it does not run.
    pub pid: i32,
    /// Whether it runs.
    pub running: bool,
    /// Whether `docker pause` holds it.
    pub paused: bool,
    /// Digest ID of its image.
    pub image: String,
    /// Everything, as Docker said it.
    pub all: ContainerInspectResponse,
}

impl Inspection {
    /// The networks it is attached to, by name.
    pub fn networks(&self) -> BTreeMap<String, EndpointSettings> {
        let settings = self.all.network_settings.clone().unwrap_or_default();
        settings.networks.unwrap_or_default().into_iter().collect()
    }

    /// The containers it is linked with, by name.
    pub fn links(&self) -> Vec<String> {
        let host = self.all.host_config.as_ref().and_then(|host| host.links.clone());
        let endpoints = self.networks().into_values().flat_map(|at| at.links.unwrap_or_default());
        // `/other:/this/alias` on the default bridge, `other:alias` elsewhere.
        let names = host.unwrap_or_default().into_iter().chain(endpoints);
        let names = names
            .filter_map(|link| Some(link.split(':').next()?.trim_start_matches('/').to_owned()));
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// The name of its image, as it was given to `docker run`.
    pub fn image_name(&self) -> String {
        let name = self.all.config.as_ref().and_then(|config| config.image.clone());
        name.unwrap_or_else(|| self.image.clone())
    }

    fn of(name: &str, all: ContainerInspectResponse) -> Result<Self, DockerError> {
        let lacks = |what| DockerError::Incomplete { name: name.to_owned(), what };
        let state = all.state.clone().ok_or_else(|| lacks("a state"))?;
        Ok(Self {
            id: all.id.clone().ok_or_else(|| lacks("an ID"))?,
            name: all.name.clone().unwrap_or_default().trim_start_matches('/').to_owned(),
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
            running: state.running.unwrap_or(false),
            paused: state.paused.unwrap_or(false),
            image: all.image.clone().ok_or_else(|| lacks("an image"))?,
            all,
        })
    }

    /// The inspection as it travels to the target.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.all).unwrap_or_default()
    }

    /// The same container by another name.
    pub fn renamed(mut self, name: &str) -> Self {
        self.all.name = Some(format!("/{name}"));
        Self { name: name.to_owned(), ..self }
    }

    /// Reads an inspection that has travelled.
    pub fn from_json(text: &str) -> Result<Self, DockerError> {
        let what = "valid JSON";
        let name = "the container to stage";
        let all = serde_json::from_str(text)
            .map_err(|_| DockerError::Incomplete { name: name.into(), what })?;
        Self::of(name, all)
    }
}

impl Docker {
    /// Connects to the daemon that `DOCKER_HOST` names, or the usual one.
    pub async fn connect() -> Result<Self, DockerError> {
        let api = bollard::Docker::connect_with_defaults().map_err(DockerError::Unreachable)?;
        api.ping().await.map_err(DockerError::Unreachable)?;
        // Starting a staged container takes as long as the migration.
        let api = api.with_timeout(std::time::Duration::from_secs(24 * 3600));
        Ok(Self { api })
    }

    /// Version of the engine.
    pub async fn version(&self) -> Result<String, DockerError> {
        let version = self.api.version().await.map_err(request("tell its version"))?;
        Ok(version.version.unwrap_or_default())
    }

    /// Whether its experimental features are on.
    pub async fn is_experimental(&self) -> Result<bool, DockerError> {
        let version = self.api.version().await.map_err(request("tell its version"))?;
        Ok(version.experimental.unwrap_or(false))
    }

    /// The directory that holds everything of Docker's.
    pub async fn root(&self) -> Result<PathBuf, DockerError> {
        let info = self.api.info().await.map_err(request("tell its root directory"))?;
        Ok(info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned()).into())
    }

    /// Looks at a container, by name or ID.
    pub async fn inspect(&self, name: &str) -> Result<Inspection, DockerError> {
        match self.api.inspect_container(name, None).await {
            Ok(all) => Inspection::of(name, all),
            Err(e) if is_missing(&e) => Err(DockerError::NoContainer { name: name.to_owned() }),
            Err(e) => Err(request(format!("inspect {name}"))(e)),
        }
    }

    /// Whether an image of this name or ID is here; its ID.
    pub async fn image_id(&self, image: &str) -> Result<Option<String>, DockerError> {
        match self.api.inspect_image(image).await {
            Ok(found) => Ok(found.id),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(request(format!("look for the image {image}"))(e)),
        }
    }

    /// Creates a container.
    pub async fn create(&self, copy: Copy) -> Result<String, DockerError> {
        let name = copy.name.clone();
        let options = query::CreateContainerOptionsBuilder::default().name(&name).build();
        let created = self.api.create_container(Some(options), copy.body).await;
        Ok(created.map_err(request(format!("create {name}")))?.id)
    }

    /// Starts a container and waits until its runtime says that it runs.
    pub async fn start(&self, id: &str) -> Result<(), DockerError> {
        self.api.start_container(id, None).await.map_err(request(format!("start {id}")))
    }

    /// Removes a container, dead or alive; fine if it is gone already.
    pub async fn remove(&self, id: &str) -> Result<(), DockerError> {
        let options = query::RemoveContainerOptionsBuilder::default().force(true).build();
        match self.api.remove_container(id, Some(options)).await {
            Err(e) if !is_missing(&e) => Err(request(format!("remove {id}"))(e)),
            _ => Ok(()),
        }
    }

    /// Removes a container that never ran, with the volumes Docker made for it
    /// alone.
    pub async fn discard(&self, id: &str) -> Result<(), DockerError> {
        let options = query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.api.remove_container(id, Some(options)).await {
            Err(e) if !is_missing(&e) => Err(request(format!("remove {id}"))(e)),
            _ => Ok(()),
        }
    }

    /// Gives a container another name.
    pub async fn rename(&self, id: &str, name: &str) -> Result<(), DockerError> {
        let options = query::RenameContainerOptionsBuilder::default().name(name).build();
        let renamed = self.api.rename_container(id, options).await;
        renamed.map_err(request(format!("rename {id} to {name}")))
    }

    /// Sets whether Docker starts a container again when it ends.
    pub async fn set_restart_policy(
        &self,
        id: &str,
        policy: RestartPolicy,
    ) -> Result<(), DockerError> {
        let body = ContainerUpdateBody { restart_policy: Some(policy), ..Default::default() };
        let updated = self.api.update_container(id, body).await;
        updated.map_err(request(format!("set the restart policy of {id}")))
    }

    /// Waits until a container has ended, as Docker sees it.
    pub async fn wait_ended(&self, id: &str) -> Result<(), DockerError> {
        for _ in 0..200 {
            match self.inspect(id).await {
                Ok(found) if found.running => {}
                Ok(_) | Err(DockerError::NoContainer { .. }) => return Ok(()),
                Err(e) => return Err(e),
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        Err(DockerError::Incomplete { name: id.to_owned(), what: "its end: it still runs" })
    }
}

/// The policy that starts nothing.
pub fn never_restart() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: Some(0) }
}

fn request(what: impl Into<String>) -> impl FnOnce(Error) -> DockerError {
    let what = what.into();
    |source| DockerError::Request { what, source }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}
