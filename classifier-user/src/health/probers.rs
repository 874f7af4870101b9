//! All probers that run.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::prober::Prober;
use super::report::{Path, Report, Reports};
use super::routes::ProbeRoutes;
use crate::links::Links;

/// All probers that run.
pub struct Probers {
    running: Vec<Running>,
    /// Runtime that they run on.
    runtime: Handle,
    /// By which they make their routes.
    links: Option<Links>,
    reports: Arc<Reports>,
}

struct Running {
    path: Arc<Path>,
    task: AbortHandle,
    /// Says that something seems to be wrong there.
    suspicion: Arc<Notify>,
}

impl Drop for Probers {
    fn drop(&mut self) {
        for running in &self.running {
            running.task.abort();
        }
    }
}

impl Probers {
    /// Probers that run on a runtime of their own choice, so that nothing else there can hold them up.
    pub fn new(runtime: Handle) -> Self {
        // Not on their own runtime: the kernel may take long over a route.
        let links = Links::open();
        let links = links.inspect_err(|error| tracing::error!("probes have no routes: {error:#}"));
        Probers {
            running: Vec::new(),
            links: links.ok(),
            runtime,
            reports: Arc::default(),
        }
    }

    /// Probes these paths, and no others. Those that stay the same go on as they are.
    pub fn set(&mut self, paths: Vec<Path>) {
        self.running.retain(|Running { path, task, .. }| {
            let stays = paths.contains(path);
            if !stays {
                task.abort();
                // A path that takes its place removes what it does not need itself.
                let goes_on = paths.iter().any(|other| other.way == path.way);
                if let (false, Some(way), Some(links)) = (goes_on, path.way, &self.links) {
                    let routes = ProbeRoutes::new(links.clone(), way);
                    let _within = self.runtime.enter();
                    routes.retain(&BTreeSet::new());
                }
            }
            stays
        });
        for path in paths {
            if !self.running.iter().any(|running| *running.path == path) {
                let path = Arc::new(path);
                let links = self.links.clone();
                let suspicion = Arc::<Notify>::default();
                let prober = Prober::new(Arc::clone(&path), links, Arc::clone(&self.reports));
                let task = self.runtime.spawn(prober.run(Arc::clone(&suspicion)));
                self.running.push(Running {
                    path,
                    task: task.abort_handle(),
                    suspicion,
                });
            }
        }
    }

    /// Returns whether a report is of a path that is probed still, and not of one that has been left since.
    pub fn is_current(&self, report: &Report) -> bool {
        (self.running.iter()).any(|running| running.path == report.path)
    }

    /// Probes an egress and address family soon, because flows there are no longer answered.
    pub fn suspect(&self, egress: &str, v6: bool) {
        let is_meant = |path: &Path| path.egress == egress && path.v6 == v6;
        for running in self
            .running
            .iter()
            .filter(|running| is_meant(&running.path))
        {
            running.suspicion.notify_one();
        }
    }

    /// Returns where the reports are.
    pub fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports)
    }
}
