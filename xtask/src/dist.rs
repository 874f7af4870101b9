//! `cargo xtask dist`: what is installed on gateways, in target/dist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::licences::third_party;
use crate::paths;
use crate::process::{cargo, output, stream};
use crate::setup::{self, Purpose};

/// What `cargo xtask dist` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The machines to build for [default: all].
    #[arg(value_enum)]
    machines: Vec<Machine>,
    /// Another version for the package than the source has.
    #[arg(long, value_name = "VERSION")]
    deb_version: Option<String>,
}

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Machine {
    /// PCs.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Machine {
    /// The target: statically linked, so that it runs on any distribution.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Machine::X86_64 => "x86_64-unknown-linux-musl",
            Machine::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The C compiler.
    fn compiler(self) -> &'static str {
        match self {
            Machine::X86_64 => "musl-gcc",
            Machine::Aarch64 => "aarch64-linux-gnu-gcc",
        }
    }

    /// Has cargo compile for the machine.
    pub(crate) fn compile_for(self, cargo: &mut Command) {
        let target = self.target();
        let in_name = target.replace('-', "_");
        cargo
            .args(["--target", target])
            .env(format!("CC_{in_name}"), self.compiler());
        if self == Machine::Aarch64 {
            // The C compiler is one for glibc; what linking with musl needs comes with Rust.
            cargo
                .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
                .env(
                    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS",
                    "-Clink-self-contained=yes",
                );
        }
    }

    /// The first of the ELF header's two bytes for the machine.
    fn elf(self) -> u8 {
        match self {
            Machine::X86_64 => 62,
            Machine::Aarch64 => 183,
        }
    }
}

/// What is installed: from the repository, and where.
const FILES: &[(&str, &str)] = &[
    (
        "dist/breakout.service",
        "usr/lib/systemd/system/breakout.service",
    ),
    (
        "dist/breakout-datapath.service",
        "usr/lib/systemd/system/breakout-datapath.service",
    ),
    ("dist/tmpfiles.conf", "usr/lib/tmpfiles.d/breakout.conf"),
    ("dist/breakout.example.toml", "etc/breakout/breakout.toml"),
    (
        "dist/breakout.example.toml",
        "usr/share/doc/breakout/examples/breakout.toml",
    ),
    (
        "dist/grafana.json",
        "usr/share/doc/breakout/examples/grafana.json",
    ),
    (
        "dist/prometheus.rules.yml",
        "usr/share/doc/breakout/examples/prometheus.rules.yml",
    ),
    ("LICENSE-APACHE", "usr/share/doc/breakout/LICENSE-APACHE"),
    ("LICENSE-GPL-2.0", "usr/share/doc/breakout/LICENSE-GPL-2.0"),
    ("LICENSE-MIT", "usr/share/doc/breakout/LICENSE-MIT"),
    ("README.md", "usr/share/doc/breakout/README.md"),
    ("CHANGELOG.md", "usr/share/doc/breakout/CHANGELOG.md"),
    ("ARCHITECTURE.md", "usr/share/doc/breakout/ARCHITECTURE.md"),
    ("CONTRIBUTING.md", "usr/share/doc/breakout/CONTRIBUTING.md"),
    ("SECURITY.md", "usr/share/doc/breakout/SECURITY.md"),
];

/// What `--example pages` writes, and where it is installed.
const PAGES: &[(&str, &str)] = &[
    ("man", "usr/share/man/man1"),
    (
        "completions/breakout.bash",
        "usr/share/bash-completion/completions/breakout",
    ),
    (
        "completions/_breakout",
        "usr/share/zsh/vendor-completions/_breakout",
    ),
    (
        "completions/breakout.fish",
        "usr/share/fish/vendor_completions.d/breakout.fish",
    ),
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(Purpose::Dist)?;
    let machines = match arguments.machines.as_slice() {
        [] => &[Machine::X86_64, Machine::Aarch64],
        chosen => chosen,
    };
    for machine in machines {
        for file in build(*machine, arguments.deb_version.as_deref())? {
            println!("{}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the packages for a machine. Returns the .deb and the .tar.gz.
pub(crate) fn build(machine: Machine, deb_version: Option<&str>) -> Result<[PathBuf; 2]> {
    let program = program(machine)?;
    let stage = stage(&program, machine.target())?;
    let deb = package(machine, deb_version)?;
    let archive = archive(machine, &stage)?;
    Ok([deb, archive])
}

/// Compiles the program for a machine. Returns where it is.
pub(crate) fn program(machine: Machine) -> Result<PathBuf> {
    let mut compile = cargo();
    compile
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "breakout",
            "--bin",
            "breakout",
        ])
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    machine.compile_for(&mut compile);
    stream(&mut compile)?;
    let program = paths::root()
        .join("target")
        .join(machine.target())
        .join("release/breakout");
    check_program(&program, machine)?;
    Ok(program)
}

/// The program must run without anything else, and have something to load into the kernel.
fn check_program(program: &Path, machine: Machine) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let shown = program.display();
    if bytes.get(18) != Some(&machine.elf()) {
        bail!("{shown} is not for {machine:?}");
    }
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if !has(b"breakout_xdp\0") {
        bail!("{shown} has no eBPF object; run cargo xtask setup");
    }
    let dynamic = output(
        Command::new("readelf")
            .args(["--program-headers"])
            .arg(program),
    );
    if dynamic.context("readelf cannot be run")?.contains("INTERP") {
        bail!("{shown} is not statically linked");
    }
    Ok(())
}

/// Lays out the files as they are installed.
fn stage(program: &Path, target: &str) -> Result<PathBuf> {
    let dist = paths::root().join("target/dist");
    let stage = dist.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let install = |from: &Path, to: &str| -> Result<()> {
        let to = stage.join(to);
        fs::create_dir_all(to.parent().context("files have directories")?)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    install(program, "usr/bin/breakout")?;
    for (from, to) in FILES {
        install(&paths::root().join(from), to)?;
    }
    // In the same places as in the repository, so that links lead to them.
    for directory in ["docs", "docs/benchmarks", "docs/decisions"] {
        for entry in fs::read_dir(paths::root().join(directory))? {
            let path = entry?.path();
            if path.is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                install(&path, &format!("usr/share/doc/breakout/{directory}/{name}"))?;
            }
        }
    }
    fs::write(
        stage.join("usr/share/doc/breakout/THIRD-PARTY"),
        third_party(target)?,
    )?;
    let pages = dist.join("pages");
    let mut write = cargo();
    write
        .args([
            "run",
            "--locked",
            "--quiet",
            "--package",
            "breakout",
            "--example",
            "pages",
            "--",
        ])
        .arg(&pages);
    stream(&mut write)?;
    for (from, to) in PAGES {
        let from = pages.join(from);
        if from.is_file() {
            install(&from, to)?;
            continue;
        }
        for entry in fs::read_dir(&from)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            install(&path, &format!("{to}/{name}"))?;
        }
    }
    Ok(stage)
}

fn package(machine: Machine, version: Option<&str>) -> Result<PathBuf> {
    let mut deb = Command::new(paths::root().join("target/tools/bin/cargo-deb"));
    deb.args([
        "--package",
        "breakout",
        "--no-build",
        "--no-strip",
        "--locked",
        "--quiet",
    ])
    .args(["--target", machine.target()])
    .arg("--output")
    .arg(paths::root().join("target/dist"))
    .current_dir(paths::root());
    if let Some(version) = version {
        deb.args(["--deb-version", version]);
    }
    let printed = output(&mut deb).context("cargo-deb failed")?;
    let path = printed
        .lines()
        .last()
        .context("cargo-deb does not say what it wrote")?;
    Ok(PathBuf::from(path))
}

/// The same for systems without Debian's packages, to be unpacked at the root: files only, so that no directory's mode changes,
/// and without the configuration, so that none is overwritten.
fn archive(machine: Machine, stage: &Path) -> Result<PathBuf> {
    let name = format!(
        "breakout-{}-{}.tar.gz",
        env!("CARGO_PKG_VERSION"),
        machine.target().trim_end_matches("-musl")
    );
    let archive = paths::root().join("target/dist").join(name);
    let find = output(
        Command::new("find")
            .current_dir(stage)
            .args(["usr", "-type", "f"]),
    );
    let find = find.context("find cannot be run")?;
    let mut files: Vec<&str> = find.lines().collect();
    files.sort_unstable();
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--gzip",
        "--owner=root",
        "--group=root",
        "--mode=u=rwX,go=rX",
    ])
    .arg("--file")
    .arg(&archive)
    .arg("--directory")
    .arg(stage)
    .args(files);
    stream(&mut tar)?;
    Ok(archive)
}
