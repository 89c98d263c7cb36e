//! Volumes: looking at them, making and removing them.

use super::{Docker, DockerError, is_missing, request};
use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters as query;
use std::collections::HashMap;

/// A container that mounts a volume, dead or alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUser {
    /// Its full ID.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// Whether it runs, paused or not.
    pub running: bool,
}

impl Docker {
    /// Looks at a volume.
    pub async fn volume(&self, name: &str) -> Result<Option<Volume>, DockerError> {
        match self.api.inspect_volume(name).await {
            Ok(found) => Ok(Some(found)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(request(format!("inspect the volume {name}"))(e)),
        }
    }

    /// Makes a volume.
    pub async fn create_volume(
        &self,
        name: &str,
        driver: &str,
        options: HashMap<String, String>,
        labels: HashMap<String, String>,
    ) -> Result<(), DockerError> {
        let body = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver: Some(driver.to_owned()),
            driver_opts: Some(options),
            labels: Some(labels),
            cluster_volume_spec: None,
        };
        let made = self.api.create_volume(body).await;
        made.map(drop).map_err(request(format!("create the volume {name}")))
    }

    /// Removes a volume that no container uses; fine if it is gone already.
    pub async fn remove_volume(&self, name: &str) -> Result<(), DockerError> {
        let options = query::RemoveVolumeOptionsBuilder::default().build();
        match self.api.remove_volume(name, Some(options)).await {
            Err(e) if !is_missing(&e) => Err(request(format!("remove the volume {name}"))(e)),
            _ => Ok(()),
        }
    }

    /// The containers that mount a volume.
    pub async fn volume_users(&self, volume: &str) -> Result<Vec<VolumeUser>, DockerError> {
        let filters = HashMap::from([("volume", vec![volume])]);
        let options =
            query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.api.list_containers(Some(options)).await;
        let found = found.map_err(request(format!("list who uses the volume {volume}")))?;
        // The filter also matches parts of names and mount points.
        let uses = |container: &bollard::models::ContainerSummary| {
            let mounts = container.mounts.as_deref().unwrap_or_default();
            mounts.iter().any(|mount| mount.name.as_deref() == Some(volume))
        };
        let user = |container: bollard::models::ContainerSummary| {
            let names = container.names.unwrap_or_default();
            let state = container.state.map(|state| state.to_string()).unwrap_or_default();
            VolumeUser {
                id: container.id.unwrap_or_default(),
                name: names.first().map(|n| n.trim_start_matches('/').into()).unwrap_or_default(),
                running: matches!(state.as_str(), "running" | "paused" | "restarting"),
            }
        };
        Ok(found.into_iter().filter(uses).map(user).collect())
    }
}
