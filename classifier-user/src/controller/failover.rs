//! Fail-over: takes traffic off a link that is gone, in a thread of its own, whatever else the controller is doing.
//!
//! The thread hears of links and next hops from the kernel and of probes from the probers, evaluates the egresses, and
//! publishes the path table. It runs no program, writes no file and waits for nobody; the flows that it looks at are in memory that the
//! programs share. What follows a fail-over (events, connection tracking, routes) is the controller's, which is woken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::active_paths::ActivePaths;
use crate::health::Reports;
use crate::links::{Fact, Facts};

/// Interval at which hold-downs, answers to flows and the like are looked at.
const CLOCK: Duration = Duration::from_millis(250);
/// Time for which the thread may be silent before the service manager is told nothing any more.
const ALIVE: Duration = Duration::from_secs(10);

/// The thread, and the paths that it shares with the controller.
pub(super) struct Failover {
    paths: Arc<Mutex<ActivePaths>>,
    woken: watch::Receiver<()>,
    /// Milliseconds after `started` at which the thread was last seen.
    seen: Arc<AtomicU64>,
    started: Instant,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// Runtime of the thread, with a subscription to link events: those that come before it runs wait.
pub(super) struct Watching(Option<(Runtime, Facts)>);

impl Watching {
    /// Subscribes in this network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("failover")
            .build()
            .context("cannot make the runtime of the fail-over thread")?;
        let facts = {
            let _within = runtime.enter();
            Facts::watch()?
        };
        Ok(Watching(Some((runtime, facts))))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // A runtime must not be waited for within another one.
        if let Some((runtime, _)) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Failover {
    /// Starts the thread. `make` gets the runtime that probers shall run on.
    ///
    /// # Errors
    ///
    /// When the kernel gives no thread.
    pub(super) fn start(
        mut watching: Watching,
        make: impl FnOnce(Handle) -> ActivePaths,
    ) -> Result<Self> {
        let taken = watching.0.take();
        let (runtime, facts) = taken.context("the subscription is used once")?;
        let paths = make(runtime.handle().clone());
        let reports = paths.reports();
        let paths = Arc::new(Mutex::new(paths));
        let (waker, woken) = watch::channel(());
        let (stop, stopped) = oneshot::channel();
        let (seen, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let watcher = Watcher {
            paths: Arc::clone(&paths),
            reports,
            waker,
            seen: Arc::clone(&seen),
            started,
        };
        let thread = thread::Builder::new()
            .name("failover".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = watcher.run(facts) => {}
                        _ = stopped => {}
                    }
                });
                // Without waiting for a resolver that does not answer.
                runtime.shutdown_background();
            })
            .context("cannot start the fail-over thread")?;
        Ok(Failover {
            paths,
            woken,
            seen,
            started,
            thread: Some((stop, thread)),
        })
    }

    /// The active paths. They must not be held for longer than it takes to write a table: nothing fails over meanwhile.
    pub(super) fn paths(&self) -> MutexGuard<'_, ActivePaths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something for the controller to do. May be dropped at any time without losing it.
    pub(super) async fn woken(&mut self) {
        if self.woken.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns whether the thread has run lately.
    pub(super) fn is_alive(&self) -> bool {
        let seen = Duration::from_millis(self.seen.load(Ordering::Relaxed));
        self.started.elapsed() < seen + ALIVE
    }
}

impl Drop for Failover {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// Loop of the thread.
struct Watcher {
    paths: Arc<Mutex<ActivePaths>>,
    reports: Arc<Reports>,
    waker: watch::Sender<()>,
    seen: Arc<AtomicU64>,
    started: Instant,
}

impl Watcher {
    async fn run(self, facts: Facts) {
        let mut clock = interval(CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut facts = Some(facts);
        loop {
            tokio::select! {
                told = next(&mut facts) => {
                    let mut paths = self.lock();
                    let mut concerns = false;
                    for fact in told {
                        concerns |= paths.take_in(fact);
                    }
                    if !concerns {
                        continue;
                    }
                    paths.want_look();
                }
                reports = self.reports.next() => {
                    let mut paths = self.lock();
                    reports.into_iter().for_each(|report| paths.note(report));
                }
                _ = clock.tick() => {}
            }
            let mut paths = self.lock();
            paths.settle();
            let has_news = paths.has_news();
            drop(paths);
            if has_news {
                self.waker.send_replace(());
            }
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.seen.store(now, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ActivePaths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next facts; none ever once the kernel tells nothing any more. The controller looks at regular times all the same.
async fn next(facts: &mut Option<Facts>) -> Vec<Fact> {
    if let Some(told) = facts {
        match told.next().await {
            Ok(facts) => return facts,
            Err(error) => tracing::error!("link events are seen late: {error}"),
        }
        *facts = None;
        return vec![Fact::Lost];
    }
    std::future::pending().await
}
