//! Synthetic packets, by which `breakout doctor` sees how steered packets go: one program puts them onto a LAN interface as if a client had
//! sent them, and another one catches them at TC egress of all others, before they reach a wire.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::{bpf_clone_redirect, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use breakout_common::synthetic::{CAUGHT_WORDS, NONCE, OF_ONE, tcp_nonce_at, udp_nonce_at};

/// The headers begin with the IP header, whatever the link is (`BPF_HDR_START_NET`).
const FROM_NETWORK: u32 = 1;
/// The most interfaces at which packets are caught.
const INTERFACES: usize = 1024;

/// Caught packets by the index of the interface; under [`NONCE`] the number by which they are known.
#[btf_map]
static CAUGHT: HashMap<u32, [u32; CAUGHT_WORDS], INTERFACES, 1> = HashMap::new();

/// Entry point for a test run: puts the packet onto the interface whose index stands in its control block, as if it had come in there.
#[classifier]
pub(crate) fn breakout_inject(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field, and the helper makes a copy.
    unsafe {
        let interface = (*skb).cb[0];
        if bpf_clone_redirect(skb, interface, u64::from(BPF_F_INGRESS)) == 0 {
            TC_ACT_UNSPEC
        } else {
            TC_ACT_SHOT
        }
    }
}

/// Entry point at TC egress: notes a synthetic packet and drops it. All else goes on.
#[classifier]
pub(crate) fn breakout_catch(ctx: TcContext) -> i32 {
    match catch(ctx.skb.skb) {
        Some(()) => TC_ACT_SHOT,
        None => TC_ACT_UNSPEC,
    }
}

/// Notes the packet; `None` if it is not one of ours.
#[inline(always)]
fn catch(skb: *mut __sk_buff) -> Option<()> {
    // SAFETY: the value is a number that nobody changes while packets are caught.
    let [nonce, ..] = *unsafe { CAUGHT.get(NONCE) }?;
    let [first] = load::<1>(skb, 0)?;
    let mut caught = [0; CAUGHT_WORDS];
    let (protocol, transport) = match first >> 4 {
        4 => {
            let [_, service, ..] = load::<4>(skb, 0)?;
            caught[1] = u32::from(service);
            caught[2] = u32::from_ne_bytes(load(skb, 12)?);
            let [protocol] = load::<1>(skb, 9)?;
            // No fragment but the first one.
            let [high, low] = load::<2>(skb, 6)?;
            if [high & 0x1f, low] != [0, 0] {
                return None;
            }
            (protocol, u32::from(first & 0x0f) * 4)
        }
        6 => {
            let [high, low] = load::<2>(skb, 0)?;
            caught[1] = u32::from(high << 4 | low >> 4);
            caught[2] = u32::from_ne_bytes(load(skb, 8)?);
            caught[3] = u32::from_ne_bytes(load(skb, 12)?);
            caught[4] = u32::from_ne_bytes(load(skb, 16)?);
            caught[5] = u32::from_ne_bytes(load(skb, 20)?);
            let [protocol] = load::<1>(skb, 6)?;
            (protocol, 40)
        }
        _ => return None,
    };
    let (place, is_tcp) = match protocol {
        6 => (tcp_nonce_at(transport), true),
        17 => (udp_nonce_at(transport), false),
        _ => return None,
    };
    caught[0] = u32::from_be_bytes(load(skb, place)?);
    if (caught[0] ^ nonce) & OF_ONE != 0 {
        return None;
    }
    if is_tcp {
        // A SYN with one option, the segment size.
        if load::<2>(skb, transport + 12)? != [6 << 4, 2] {
            return None;
        }
        let size = load::<2>(skb, transport + 22)?;
        caught[6] = u32::from(u16::from_be_bytes(size));
    } else if load::<2>(skb, transport + 4)? != [0, 12] {
        // A datagram that has the number alone.
        return None;
    }
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    let interface = unsafe { (*skb).ifindex };
    CAUGHT.insert(interface, caught, 0).ok()
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
    let len = const { N as u32 };
    let mut bytes = [0; N];
    // SAFETY: the helper writes N bytes, or fails.
    let loaded = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            len,
            FROM_NETWORK,
        )
    };
    (loaded == 0).then_some(bytes)
}
