//! Compiles the programs for tests and benchmarks and puts the object where `programs` includes it.

#[path = "../xtask/src/build_script.rs"]
mod build_script;
#[path = "../xtask/src/object.rs"]
mod object;

fn main() {
    build_script::build_script("bench");
}
