//! The bpf(2) calls that aya does not offer: maps whose value size is known only at run time.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};

/// Creates an array map with one entry of `value_size` bytes.
pub(super) fn create_array(name: &str, value_size: u32) -> io::Result<OwnedFd> {
    create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, name, value_size, 0)
}

/// Creates an array of one map, whose inner maps are like `inner`.
pub(super) fn create_array_of_maps(name: &str, inner: impl AsFd) -> io::Result<OwnedFd> {
    let inner = inner.as_fd().as_raw_fd();
    create_map(
        bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
        name,
        4,
        inner.cast_unsigned(),
    )
}

fn create_map(
    map_type: bpf_map_type,
    name: &str,
    value_size: u32,
    inner_map_fd: u32,
) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: every field of this variant of the union is an integer, and all of the union is initialised.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = map_type as u32;
    create.key_size = 4;
    create.value_size = value_size;
    create.max_entries = 1;
    create.inner_map_fd = inner_map_fd;
    // The last byte stays zero; the kernel takes at most 15 characters.
    for (to, from) in create.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes the one entry of an array map made by [`create_array`] with the size of `words`.
pub(super) fn write_array(map: impl AsFd, words: &[u32]) -> io::Result<()> {
    let key = 0u32;
    let mut attr = element(&map, &key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = words.as_ptr() as u64;
    // The kernel reads value_size bytes, which the caller made equal to the length of `words`.
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Reads the one entry of an array map made by [`create_array`] with the size of `words`.
pub(super) fn read_array(map: impl AsFd, words: &mut [u32]) -> io::Result<()> {
    let key = 0u32;
    let mut attr = element(&map, &key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = words.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

fn element(map: &impl AsFd, key: &u32) -> bpf_attr {
    let mut attr = empty_attr();
    // SAFETY: every field of this variant of the union is an integer, and all of the union is initialised.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_fd().as_raw_fd().cast_unsigned();
    element.key = std::ptr::from_ref(key) as u64;
    attr
}

fn empty_attr() -> bpf_attr {
    // SAFETY: bpf_attr is a union of structs of integers, for which all-zero bytes are valid.
    unsafe { zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is valid for reads and writes of its size for the call, and so are the key and value
    // it points to: the callers above keep both alive and of the sizes the map was created with.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)
}
