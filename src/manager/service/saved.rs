//! The state of a service that is saved for the next manager.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::history::History;
use super::service::Service;
use crate::config::ServiceConfig;
use crate::manager::instance::{self, Instance, SavedInstance};
use crate::manager::process::deployment::{Deployment, SavedDeployment};
use crate::manager::process::executable::stored_name;
use crate::manager::rollout::{InstanceId, LifeStage, Reconciler, SavedRollout};
use crate::manager::world::World;

/// The state of a service that is saved for the next manager.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedService {
    spec: Arc<ServiceConfig>,
    removed: bool,
    #[serde(default)]
    leaving: bool,
    #[serde(flatten)]
    history: History,
    core: SavedRollout,
    deployments: BTreeMap<u64, SavedDeployment>,
    instances: BTreeMap<InstanceId, SavedInstance>,
}

impl SavedService {
    /// The configuration of the service as it was last applied.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }
}

impl Service {
    /// Returns the state that the next manager needs to take over the service.
    pub fn save(&self) -> SavedService {
        let deployments = self.deployments.iter();
        let instances = self.instances.iter();
        SavedService {
            spec: self.spec.clone(),
            removed: self.removed,
            leaving: self.leaving,
            history: self.history.clone(),
            core: self.core.save(),
            deployments: deployments
                .map(|(generation, deployment)| (*generation, deployment.save()))
                .collect(),
            instances: instances
                .map(|(id, instance)| (*id, instance.save()))
                .collect(),
        }
    }

    /// Restores a service from its saved state and the stored descriptors. The caller must call
    /// [`Service::tick`] once all services are restored.
    pub fn restore(
        mut saved: SavedService,
        stored: &mut BTreeMap<String, OwnedFd>,
        world: &mut World,
    ) -> std::io::Result<Service> {
        let name = saved.spec.name.clone();
        let mut deployments = BTreeMap::new();
        for (generation, kept) in saved.deployments {
            let executable = stored.remove(&stored_name(&name, generation));
            let deployment = Deployment::restore(kept, executable)?;
            deployments.insert(generation, Rc::new(deployment));
        }
        let mut core = Reconciler::restore(saved.core.clone(), Instant::now());
        let mut instances = BTreeMap::new();
        for held in core.instances().to_vec() {
            let kept = saved.instances.remove(&held.id);
            let deployment = deployments.get(&held.target.generation).cloned();
            let (Some(kept), Some(deployment)) = (kept, deployment) else {
                core.never_was(held.id);
                continue;
            };
            let socket = stored.remove(&instance::stored_socket(held.id));
            let kept = (kept, socket);
            let mut instance = Instance::adopt(held.id, held.slot, &name, deployment, kept, world);
            match held.state.stage() {
                // The program never started, or nobody has seen how it ended.
                LifeStage::Starting if instance.pid().is_none() => {
                    core.never_was(held.id);
                    world.ports.release(held.id);
                    instance.clean_up(&world.supervision);
                    continue;
                }
                LifeStage::Stopping => instance.stop(),
                _ => {}
            }
            world.owners.insert(held.id, name.clone());
            instances.insert(held.id, instance);
        }
        Ok(Service {
            spec: saved.spec,
            core,
            deployments,
            instances,
            removed: saved.removed,
            leaving: saved.leaving,
            keeps: BTreeMap::new(),
            history: saved.history,
            remarks: Vec::new(),
            arguments_changed: None,
            moved: true,
        })
    }
}
