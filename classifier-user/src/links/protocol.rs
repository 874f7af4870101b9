//! The mark of our own routes and rules.

use rtnetlink::packet_route::route::RouteProtocol;

/// The protocol number that marks rules and routes as ours (`ip rule show protocol 76`). Nobody in
/// iproute2's rt_protos has it.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(76);
