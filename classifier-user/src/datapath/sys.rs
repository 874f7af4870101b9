//! The bpf(2) calls that aya does not offer: array maps whose value size is known only at run time, all entries of a hash
//! map at once, and the numbers of programs without asking what they are, which needs CAP_SYS_ADMIN.

use std::ffi::{CString, c_char};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Result, ensure};
use aya::Pod;
use aya::maps::MapData;
use aya::programs::TcAttachType;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type};

/// An array map with one entry of a whole number of 32-bit words.
pub(super) struct WordMap {
    map: MapData,
    words: usize,
}

impl WordMap {
    /// Creates a map for `words` words, all zero.
    pub(super) fn create(name: &str, words: usize) -> Result<Self> {
        let bytes = u32::try_from(words * 4)?;
        let fd = create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, name, bytes, 0)?;
        let map = MapData::from_fd(fd)?;
        Ok(WordMap { map, words })
    }

    /// The map itself, to be put into an array of maps.
    pub(super) fn map(&self) -> &MapData {
        &self.map
    }

    fn raw_fd(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd().cast_unsigned()
    }

    /// Replaces the entry. Words beyond the end of `words` become zero.
    pub(super) fn write(&self, words: &[u32]) -> io::Result<()> {
        let mut value = vec![0; self.words];
        value
            .get_mut(..words.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(words);
        self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut value)
    }

    /// The entry.
    pub(super) fn read(&self) -> io::Result<Vec<u32>> {
        let mut value = vec![0; self.words];
        self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut value)?;
        Ok(value)
    }

    fn element(&self, command: bpf_cmd, value: &mut [u32]) -> io::Result<()> {
        assert_eq!(value.len(), self.words);
        let key = 0u32;
        let mut attr = empty_attr();
        attr.__bindgen_anon_2.map_fd = self.raw_fd();
        attr.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        // SAFETY: the kernel reads 4 bytes at `key` and reads or writes the map's value size at `value`: this
        // map was created with exactly `self.words` words, and the assertion holds `value` to that.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }
}

/// Creates an array of one map, whose inner maps are like `inner`.
pub(super) fn create_array_of_maps(name: &str, inner: &WordMap) -> io::Result<OwnedFd> {
    create_map(
        bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
        name,
        4,
        inner.raw_fd(),
    )
}

/// All entries of a hash map with keys of `K` and values of `V`, many at a time (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6). Those
/// that come or go meanwhile may be there or not.
pub(super) fn entries<K: Pod + Default, V: Pod + Default>(map: &MapData) -> Result<Vec<(K, V)>> {
    /// More than any bucket has: the kernel gives whole buckets.
    const CHUNK: usize = 8192;
    let most = fit::<K, V>(map)?;
    let (mut keys, mut values) = (vec![K::default(); CHUNK], vec![V::default(); CHUNK]);
    let mut found = Vec::new();
    // Where the next call goes on: a number of the kernel's own.
    let mut place: Option<u32> = None;
    loop {
        let mut next = 0u32;
        let mut attr = empty_attr();
        attr.batch.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
        attr.batch.in_batch = place
            .as_ref()
            .map_or(0, |place| std::ptr::from_ref(place) as u64);
        attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = u32::try_from(CHUNK)?;
        // SAFETY: the kernel reads 4 bytes at `in_batch` unless that is null, and writes 4 at `out_batch`, as for all hash
        // maps. It writes at most `count` keys and values, of the sizes that were compared above with those of the elements
        // of both vectors, which have `count` elements.
        let outcome = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let is_end = match outcome {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error.into()),
        };
        // SAFETY: the kernel has set the count, in the view of the union that this command uses.
        let count = unsafe { attr.batch.count } as usize;
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        // No more than there is room for, should the programs be faster than this.
        if is_end || found.len() >= most as usize {
            return Ok(found);
        }
        place = Some(next);
    }
}

/// Fails unless a map has such keys and values. Returns the most entries that it can have.
fn fit<K, V>(map: &MapData) -> Result<u32> {
    let info = map.info()?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    ensure!(
        (key, value) == (size_of::<K>(), size_of::<V>()),
        "the map has keys of {key} bytes and values of {value}"
    );
    Ok(info.max_entries())
}

/// Sets an entry of a map.
pub(super) fn set<K: Pod, V: Pod>(map: &MapData, key: &K, value: &V) -> Result<()> {
    fit::<K, V>(map)?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    // SAFETY: the kernel reads a key and a value, of the sizes that were compared above.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// An entry of a map, if there is one.
pub(super) fn get<K: Pod, V: Pod + Default>(map: &MapData, key: &K) -> Result<Option<V>> {
    fit::<K, V>(map)?;
    let mut value = V::default();
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
    // SAFETY: the kernel reads a key and writes a value, which are as large as the map's (`fit`) and outlive the call.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes an entry of a map.
pub(super) fn remove<K: Pod, V: Pod>(map: &MapData, key: &K) -> Result<()> {
    fit::<K, V>(map)?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    // SAFETY: the kernel reads a key, of the size that was compared above.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }?;
    Ok(())
}

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the kernel reads the path, which ends with a zero and lives until after the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins what a descriptor stands for at a path.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd.as_raw_fd().cast_unsigned();
    // SAFETY: the kernel reads the path, which ends with a zero and lives until after the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Detaches the program of a link, which stays without effect (`BPF_LINK_DETACH`, Linux 5.9).
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty_attr();
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    // SAFETY: this command takes no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The numbers of the programs at TCX ingress of an interface, at most 64 as the kernel has it (`BPF_MPROG_MAX`).
pub(super) fn tcx_programs(index: u32, side: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attr = empty_attr();
    attr.query.__bindgen_anon_1.target_ifindex = index;
    let side = match side {
        TcAttachType::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        _ => bpf_attach_type::BPF_TCX_INGRESS,
    };
    attr.query.attach_type = side as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = 64;
    // SAFETY: the kernel writes at most `count` numbers at `prog_ids`, which is how many there is room for.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    // SAFETY: the kernel has set the count, which is a number in either view of the union.
    let count = unsafe { attr.query.__bindgen_anon_2.count };
    Ok(ids.into_iter().take(count as usize).collect())
}

fn create_map(
    map_type: bpf_map_type,
    name: &str,
    value_size: u32,
    inner_map_fd: u32,
) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_1.map_type = map_type as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = value_size;
    attr.__bindgen_anon_1.max_entries = 1;
    attr.__bindgen_anon_1.inner_map_fd = inner_map_fd;
    let mut map_name = [0; 16];
    // The kernel wants a zero at the end, so it takes at most 15 characters.
    for (to, from) in map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    attr.__bindgen_anon_1.map_name = map_name;
    // SAFETY: this command takes no pointers.
    let fd = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty_attr() -> bpf_attr {
    // SAFETY: bpf_attr is a union of structs of integers, for which all-zero bytes are valid.
    unsafe { zeroed() }
}

/// Calls bpf(2).
///
/// # Safety
///
/// What `attr` points to must be valid for what the kernel does with it in this command.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is valid for reads and writes of its size; the caller answers for the rest.
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
