//! A compiler that can build `core` for eBPF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::linker::LLVM;
use super::packages::debian_rust;
use super::{Choice, Step, is_root};
use crate::object::Toolchain;
use crate::paths;
use crate::process::{output, run_logged};

/// rustup may have no network; then Debian's packages do.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// The compiler of the eBPF object, noted in the record.
pub(crate) struct Compiler {
    pub(super) choice: Choice,
}

/// A way to get such a compiler.
pub(crate) struct Recipe {
    /// For people.
    pub(crate) name: &'static str,
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Recipe {
    /// The toolchain that builds the rest, named by its files so that no proxy chooses another.
    fn rustup() -> Option<Self> {
        let which = |tool| output(Command::new("rustup").args(["which", tool]));
        Some(Recipe {
            name: "rustup",
            cargo: which("cargo")?.trim().into(),
            rustc: which("rustc")?.trim().into(),
        })
    }

    fn debian() -> Self {
        Recipe {
            name: "debian",
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
        }
    }

    /// Returns whether the compiler is there with the source of `core`.
    fn is_ready(&self) -> bool {
        let sysroot = output(Command::new(&self.rustc).args(["--print", "sysroot"]));
        sysroot.is_some_and(|sysroot| {
            let source = "lib/rustlib/src/rust/library/core/src/lib.rs";
            Path::new(sysroot.trim()).join(source).is_file()
        })
    }

    /// The toolchain with the linker that the set-up built.
    pub(crate) fn toolchain(&self) -> Toolchain {
        Toolchain {
            cargo: self.cargo.clone(),
            rustc: self.rustc.clone(),
            linker: paths::linker(),
        }
    }

    fn record(&self) -> String {
        format!(
            "cargo = {}\nrustc = {}\nlinker = {}\n",
            self.cargo.display(),
            self.rustc.display(),
            paths::linker().display()
        )
    }
}

/// Fails if the linker's LLVM is older than the compiler's, whose bitcode it then could not read.
fn check_llvm(rustc: &Path) -> Result<()> {
    let version = output(Command::new(rustc).arg("-vV")).unwrap_or_default();
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok())
        .context("the compiler does not tell its LLVM version")?;
    if llvm > LLVM {
        bail!(
            "{} has LLVM {llvm}, and bpf-linker is built with LLVM {LLVM}, which cannot read its output. \
             Use an older stable Rust, or: cargo xtask setup --toolchain debian",
            rustc.display()
        );
    }
    Ok(())
}

/// Both recipes, installed if that is possible; the second part says why one is not to be had.
pub(crate) fn recipes() -> Vec<(&'static str, Result<Recipe>)> {
    vec![("rustup", rustup()), ("debian", debian())]
}

fn rustup() -> Result<Recipe> {
    let recipe = Recipe::rustup().context("there is no rustup")?;
    if !recipe.is_ready() {
        let mut add = Command::new("rustup");
        add.args(["component", "add", "rust-src"]);
        run_logged(&mut add, RUSTUP_LIMIT)?;
    }
    if !recipe.is_ready() {
        bail!("rustup says that rust-src is installed, but it is not in the compiler's sysroot");
    }
    check_llvm(&recipe.rustc)?;
    Ok(recipe)
}

fn debian() -> Result<Recipe> {
    let packages = debian_rust();
    if !packages.absent().is_empty() {
        if !is_root() {
            bail!("not root; run: {}", packages.missing().join(" && "));
        }
        packages.install()?;
    }
    let recipe = Recipe::debian();
    if !recipe.is_ready() {
        bail!("Debian's rust-web-src is installed, but not in the sysroot of /usr/bin/rustc");
    }
    check_llvm(&recipe.rustc)?;
    Ok(recipe)
}

impl Step for Compiler {
    fn title(&self) -> String {
        "a compiler with the source of core, to compile eBPF".to_owned()
    }

    fn missing(&self) -> Vec<String> {
        let record = fs::read_to_string(paths::toolchain_record()).unwrap_or_default();
        let recorded = Toolchain::parse(&record).is_ok_and(|toolchain| {
            [&toolchain.cargo, &toolchain.rustc, &toolchain.linker]
                .iter()
                .all(|path| path.is_file())
        });
        let is_debian = record.contains("rustc = /usr/bin/rustc");
        let as_chosen = match self.choice {
            Choice::Auto => true,
            Choice::Rustup => !is_debian,
            Choice::Debian => is_debian,
        };
        // An update of the compiler may have brought a newer LLVM than the linker's.
        let readable = || {
            let toolchain = Toolchain::parse(&record).map_err(anyhow::Error::msg)?;
            check_llvm(&toolchain.rustc)
        };
        if recorded && as_chosen && readable().is_ok() {
            return Vec::new();
        }
        let rustup = "rustup component add rust-src".to_owned();
        let debian = debian_rust();
        if self.choice == Choice::Auto && debian.absent().is_empty() {
            return vec![rustup];
        }
        match self.choice {
            Choice::Rustup => vec![rustup],
            Choice::Debian => vec![format!("apt-get install {}", debian.absent().join(" "))],
            Choice::Auto => vec![format!(
                "{rustup}    # or, if rustup has no network: apt-get install {}",
                debian.absent().join(" ")
            )],
        }
    }

    fn install(&self) -> Result<()> {
        let recipe = match self.choice {
            Choice::Rustup => rustup()?,
            Choice::Debian => debian()?,
            Choice::Auto => rustup().or_else(|error| {
                eprintln!("      rustup cannot: {error:#}");
                eprintln!("      taking Debian's Rust instead");
                debian()
            })?,
        };
        eprintln!("      took {}: {}", recipe.name, recipe.rustc.display());
        fs::write(paths::toolchain_record(), recipe.record())?;
        Ok(())
    }

    fn needs_root(&self) -> bool {
        self.choice == Choice::Debian
    }
}
