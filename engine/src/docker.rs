//! What blip asks of Docker, on either host.
//!
//! One [`Docker`] is one daemon, reached over its unix socket. What moves
//! between hosts is a [`ContainerFacts`]: everything the target needs to make
//! the same container with its own daemon ([`Docker::stage_create`]).

mod facts;
mod register;
mod stage;

use std::path::{Path, PathBuf};

use bollard::errors::Error as BollardError;
use bollard::query_parameters::{
    KillContainerOptions, RemoveContainerOptions, StopContainerOptions,
};

pub use bollard::models::{ContainerConfig, HostConfig, RestartPolicy, RestartPolicyNameEnum};
pub use facts::{ContainerFacts, Endpoint, MountFact};
pub use register::Registration;
pub use stage::{NetworkIdentity, StageOverrides};

/// The name blip registers its runtime under.
pub const RUNTIME_NAME: &str = "blip";

/// Where Docker listens by default.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Seconds an ordinary request may take.
const REQUEST_TIMEOUT: u64 = 120;
/// Seconds a start may take: it waits for the handover.
const START_TIMEOUT: u64 = 7 * 24 * 3600;

/// Docker could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// No daemon there.
    #[error("cannot reach Docker at {}: {source}; is dockerd running, and this user root?", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        source: Box<BollardError>,
    },
    /// There is no such container.
    #[error("there is no container '{0}' on this host; `docker ps -a` lists them")]
    NoContainer(String),
    /// The daemon refused.
    #[error("Docker could not {what}: {why}")]
    Refused {
        /// What was tried, and on what.
        what: String,
        /// In Docker's words.
        why: String,
    },
    /// The answer makes no sense.
    #[error(
        "Docker's answer about '{container}' lacks {lacks}; this version of Docker is not understood"
    )]
    Incomplete {
        /// On which container.
        container: String,
        /// What is missing.
        lacks: &'static str,
    },
    /// The daemon's configuration cannot be changed.
    #[error("cannot register the runtime in {}: {why}", file.display())]
    Config {
        /// `daemon.json`.
        file: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
}

impl DockerError {
    fn refused(what: impl Into<String>) -> impl FnOnce(BollardError) -> Self {
        let what = what.into();
        move |e| Self::Refused {
            what,
            why: match e {
                BollardError::DockerResponseServerError { message, .. } => message,
                other => other.to_string(),
            },
        }
    }
}

/// Versions of the parts, for reports and preflight.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DockerVersion {
    /// Of the daemon, such as `28.5.2`.
    pub docker: String,
    /// Of its API, such as `1.51`.
    pub api: String,
    /// Of containerd, if it says.
    pub containerd: Option<String>,
    /// Of runc, if it says.
    pub runc: Option<String>,
    /// Of the kernel.
    pub kernel: String,
}

/// One Docker daemon.
#[derive(Debug, Clone)]
pub struct Docker {
    quick: bollard::Docker,
    /// The same, for a start that waits for its container to arrive.
    patient: bollard::Docker,
}

impl Docker {
    /// Connects to the local daemon.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`].
    pub async fn connect() -> Result<Self, DockerError> {
        Self::connect_to(Path::new(DEFAULT_SOCKET)).await
    }

    /// Connects to the daemon behind this socket, in the newest API version
    /// both speak.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`].
    pub async fn connect_to(socket: &Path) -> Result<Self, DockerError> {
        let fail = |source| DockerError::Unreachable {
            socket: socket.to_owned(),
            source: Box::new(source),
        };
        let path = socket.to_string_lossy();
        let connect = async |timeout| {
            bollard::Docker::connect_with_unix(&path, timeout, bollard::API_DEFAULT_VERSION)?
                .negotiate_version()
                .await
        };
        let quick = connect(REQUEST_TIMEOUT).await.map_err(fail)?;
        let patient = connect(START_TIMEOUT).await.map_err(fail)?;
        Ok(Self { quick, patient })
    }

    /// All there is to know of a container, by name or id.
    ///
    /// # Errors
    /// When there is none, or Docker's answer makes no sense.
    pub async fn inspect(&self, container: &str) -> Result<ContainerFacts, DockerError> {
        let answer = self.quick.inspect_container(container, None).await.map_err(|e| match e {
            BollardError::DockerResponseServerError { status_code: 404, .. } => {
                DockerError::NoContainer(container.to_owned())
            }
            other => DockerError::refused(format!("inspect '{container}'"))(other),
        })?;
        let mut facts = ContainerFacts::read(container, answer)?;
        for endpoint in &mut facts.endpoints {
            let network = self.quick.inspect_network(&endpoint.network, None).await;
            endpoint.driver = network.ok().and_then(|n| n.driver).unwrap_or_default();
        }
        Ok(facts)
    }

    /// Starts a container. For a staged one this returns when it has arrived
    /// and runs, or never will; it can take as long as the handover.
    ///
    /// # Errors
    /// In Docker's words, which are the runtime's.
    pub async fn start(&self, id: &str) -> Result<(), DockerError> {
        self.patient
            .start_container(id, None)
            .await
            .map_err(DockerError::refused(format!("start container {}", short(id))))
    }

    /// Stops a container: its stop signal, then SIGKILL after `patience` seconds.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn stop(&self, id: &str, patience: i32) -> Result<(), DockerError> {
        let options = StopContainerOptions { t: Some(patience), ..Default::default() };
        self.quick
            .stop_container(id, Some(options))
            .await
            .map_err(DockerError::refused(format!("stop container {}", short(id))))
    }

    /// Sends a container's init SIGKILL.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn kill(&self, id: &str) -> Result<(), DockerError> {
        self.quick
            .kill_container(id, Some(KillContainerOptions { signal: "SIGKILL".into() }))
            .await
            .map_err(DockerError::refused(format!("kill container {}", short(id))))
    }

    /// Removes a container, running or not, with its anonymous volumes. That
    /// it is gone already is no error.
    ///
    /// Docker blocks here while a start of the container waits: end the stage
    /// first.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn remove_force(&self, id: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        match self.quick.remove_container(id, Some(options)).await {
            Err(BollardError::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            done => done.map_err(DockerError::refused(format!("remove container {}", short(id)))),
        }
    }

    /// Sets the restart policy of an existing container.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn set_restart_policy(
        &self,
        id: &str,
        policy: &RestartPolicy,
    ) -> Result<(), DockerError> {
        let body = bollard::models::ContainerUpdateBody {
            restart_policy: Some(policy.clone()),
            ..Default::default()
        };
        self.quick.update_container(id, body).await.map_err(DockerError::refused(format!(
            "set the restart policy of container {}",
            short(id)
        )))
    }

    /// Whether this host has the image, by id (`sha256:…`) or name.
    ///
    /// # Errors
    /// In Docker's words; that there is none is no error.
    pub async fn image_present(&self, image: &str) -> Result<bool, DockerError> {
        Ok(self.image_id(image).await?.is_some())
    }

    /// The id behind an image's name, if this host has it.
    ///
    /// # Errors
    /// In Docker's words; that there is none is no error.
    pub async fn image_id(&self, image: &str) -> Result<Option<String>, DockerError> {
        match self.quick.inspect_image(image).await {
            Ok(found) => Ok(found.id),
            Err(BollardError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(e) => Err(DockerError::refused(format!("inspect the image '{image}'"))(e)),
        }
    }

    /// What runs here, in which version.
    ///
    /// # Errors
    /// In Docker's words.
    pub async fn version(&self) -> Result<DockerVersion, DockerError> {
        let version =
            self.quick.version().await.map_err(DockerError::refused("tell its version"))?;
        let components = version.components.unwrap_or_default();
        let part =
            |name: &str| components.iter().find(|c| c.name == name).map(|c| c.version.clone());
        Ok(DockerVersion {
            docker: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            containerd: part("containerd"),
            runc: part("runc"),
            kernel: version.kernel_version.unwrap_or_default(),
        })
    }
}

/// The part of an id people read.
fn short(id: &str) -> &str {
    id.get(..12).filter(|_| id.len() == 64).unwrap_or(id)
}
