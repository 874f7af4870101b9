//! Compiles the data path and puts the object where `datapath::object` includes it.

#[path = "../xtask/src/object.rs"]
mod object;

fn main() {
    object::build_script("classifier");
}
