//! Compiles the programs for tests and benchmarks and puts the object where `programs` includes it.

#[path = "../xtask/src/object.rs"]
mod object;

fn main() {
    object::build_script("bench");
}
