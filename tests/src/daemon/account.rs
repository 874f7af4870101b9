//! Whose the controller is: root's, or, as under systemd, that of a user who has a few capabilities only.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::netns::{Namespace, run};

/// The user and group, who exist only as this number.
const USER: u32 = 64_013;
/// As `CapabilityBoundingSet` of dist/breakout.service has them.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "net_raw", "perfmon"];

/// The account of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// root.
    Root,
    /// The service's own user.
    Service,
}

impl Account {
    /// The account of all controllers in this run of the tests: the service's, unless BREAKOUT_TEST_ACCOUNT is `root`.
    pub fn of_tests() -> Self {
        match std::env::var("BREAKOUT_TEST_ACCOUNT").as_deref() {
            Ok("root") => Account::Root,
            _ => Account::Service,
        }
    }

    /// Gives the account a directory.
    pub(super) fn own(self, directory: &Path) -> Result<()> {
        if self == Account::Service && nix::unistd::geteuid().is_root() {
            chown(directory, Some(USER), Some(USER))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// Where pins are.
const BPFFS: &str = "/sys/fs/bpf";

/// A command that runs `program` in the namespace as the service's user; a file `hosts` at the place tells it the names of hosts. As in the service, of the BPF file system there is
/// only the directory of the pins, which is the user's.
pub(super) fn as_service(namespace: &Namespace, place: &Path, program: &Path) -> Result<Command> {
    let is_mounted = statfs(BPFFS).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC);
    if !is_mounted {
        run(Command::new("mount").args(["-t", "bpf", "-o", "mode=700", "bpf", BPFFS]))?;
    }
    let pins = Path::new(BPFFS).join("breakout");
    fs::create_dir_all(&pins)?;
    chown(&pins, Some(USER), Some(USER)).context("the pins' directory")?;
    let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("+{name}")).collect();
    let capabilities = format!("-all,{}", capabilities.join(","));
    // By its path, because a busybox shell would take its own.
    let script = format!(
        "set -e\n\
         mkdir -p {place}/pins; touch {place}/breakout\n\
         mount --bind {BPFFS}/breakout {place}/pins\n\
         mount --bind {program} {place}/breakout\n\
         mount -t sysfs sysfs /sys\n\
         if [ -f {place}/hosts ]; then mount --bind {place}/hosts /etc/hosts; fi\n\
         export BREAKOUT_PINS={place}/pins\n\
         cd {place}\n\
         exec /usr/bin/setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --inh-caps {capabilities} \
         --ambient-caps {capabilities} --bounding-set {capabilities} {place}/breakout \"$@\"\n",
        place = place.display(),
        program = program.display(),
    );
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", namespace.name()))
        .args(["unshare", "--mount", "--propagation", "private"])
        .args(["sh", "-c", &script, "breakout"]);
    Ok(command)
}
