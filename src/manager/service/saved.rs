//! The state of a service that is saved for the next manager.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::history::History;
use super::service::{Service, desired};
use crate::config::ServiceConfig;
use crate::manager::instance::{self, Instance, SavedInstance};
use crate::manager::process::deployment::{ClosedExecutable, Deployment, SavedDeployment};
use crate::manager::process::executable::{OpenExecutable, stored_name};
use crate::manager::rollout::{
    FrozenRollout, InstanceId, LifeStage, Reconciler, RolloutTarget, SavedRollout,
};
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

/// The frozen part of a [`SavedService`], which every build finds in the state of every other one:
/// the processes of the service. No field may be renamed or removed, or get another meaning.
#[derive(Debug, Deserialize)]
pub struct FrozenService {
    last_generation: u64,
    last_version: u64,
    past_requests: u64,
    core: FrozenRollout,
    instances: BTreeMap<InstanceId, SavedInstance>,
}

impl FrozenService {
    /// Returns a state in which the instances run something unknown, which differs from anything
    /// that is on disk: the next reload replaces them like those of any older version. `spec` is
    /// the present configuration of the service.
    pub fn with_unknown_content(self, spec: Arc<ServiceConfig>) -> SavedService {
        let target = RolloutTarget {
            generation: self.last_generation,
            version: self.last_version,
        };
        let unknown = SavedDeployment::unknown(&spec.process, target.version);
        let desired = desired(&spec, self.core.is_running(), target);
        SavedService {
            removed: false,
            leaving: false,
            history: History {
                last_generation: self.last_generation,
                last_version: self.last_version,
                past_requests: self.past_requests,
                ..History::default()
            },
            core: self.core.reached(desired),
            deployments: BTreeMap::from([(target.generation, unknown)]),
            instances: self.instances,
            spec,
        }
    }
}

impl SavedService {
    /// The configuration of the service as it was last applied.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }

    /// Returns the executables of the service that are not among the stored descriptors, by the
    /// names under which they should be stored.
    pub fn closed_executables(
        &self,
        is_stored: impl Fn(&str) -> bool,
    ) -> Vec<(String, ClosedExecutable)> {
        let executables = self.deployments.iter();
        let executables = executables.map(|(generation, kept)| {
            let name = stored_name(&self.spec.name, *generation);
            (name, kept)
        });
        let closed = executables.filter(|(name, _)| !is_stored(name));
        closed
            .map(|(name, kept)| (name, kept.closed_executable()))
            .collect()
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

    /// Restores a service from its saved state and the stored descriptors. `opened` are the
    /// executables that were not stored. The caller must call [`Service::tick`] once all services
    /// are restored.
    pub fn restore(
        mut saved: SavedService,
        stored: &mut BTreeMap<String, OwnedFd>,
        opened: &mut BTreeMap<String, io::Result<OpenExecutable>>,
        world: &mut World,
    ) -> Service {
        let name = saved.spec.name.clone();
        let mut deployments = BTreeMap::new();
        for (generation, kept) in saved.deployments {
            let stored_name = stored_name(&name, generation);
            let executable = match stored.remove(&stored_name) {
                Some(file) => kept.opened_executable(file),
                None => opened
                    .remove(&stored_name)
                    .unwrap_or_else(|| Err(io::Error::other("it was not opened in time")))
                    .inspect(|executable| world.keep_executable(&name, generation, executable)),
            };
            if let Err(error) = &executable {
                tracing::error!(
                    service = name,
                    generation,
                    error = %error,
                    "executable lost, no instance of it can be started"
                );
            }
            let deployment = Deployment::restore(kept, executable);
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
        Service {
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
        }
    }
}
