//! Addresses that no upstream call may reach, however they were found: in a definition, or as a name's answer.
//!
//! An IPv6 address may stand for an IPv4 one that a translator or a tunnel on the way takes out of it. What always
//! holds: such an address is allowed only if the IPv4 addresses in it are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names of metadata services, whatever they resolve to.
const METADATA_NAMES: [&str; 1] = ["metadata.google.internal"];

/// Metadata services that have no link-local address: Alibaba, Oracle; the last is Azure's own for its machines.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];

/// The same over IPv6: AWS, Google.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why an upstream host is never called: link-local addresses reach the metadata services of clouds.
pub(super) fn forbidden_host(host: &str) -> Option<&'static str> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if METADATA_NAMES.iter().any(|metadata| name.eq_ignore_ascii_case(metadata)) {
        return Some("metadata services are never called");
    }
    let address: IpAddr = host.parse().ok()?;
    is_forbidden_address(address)
        .then_some("link-local, multicast, unspecified and metadata addresses are never called, in no notation")
}

/// Is this link-local, of a metadata service, multicast or unspecified, or may it lead to such an address?
pub fn is_forbidden_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_forbidden_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || METADATA_V6.contains(&v6)
                || embedded(v6).into_iter().any(is_forbidden_v4)
        }
    }
}

/// Is this loopback, or may it lead there?
pub fn is_loopback_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || embedded(v6).iter().any(Ipv4Addr::is_loopback),
    }
}

fn is_forbidden_v4(v4: Ipv4Addr) -> bool {
    v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || METADATA_V4.contains(&v4)
}

/// The IPv4 addresses that a packet to this address may be sent on to. Mapped ones (`::ffff:0:0/96`) are IPv4 addresses
/// to the system itself and not looked at here.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bytes = address.octets();
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| bytes[place]));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        // `::` and `::1` embed nothing.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        // NAT64 prefixes of a network's own choice and any of these lengths (RFC 8215, RFC 6052 2.2). Which one it is can't
        // be told, so each place counts; what is elsewhere in an address of another length is often zero, or large.
        [0x64, 0xff9b, 1, ..] => {
            let of_lengths = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]].map(at);
            of_lengths.into_iter().filter(|v4| !v4.is_unspecified() && !v4.is_multicast()).collect()
        }
        // 6to4 (RFC 3056 2).
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo: the server, and the client in inverted bits (RFC 4380 4).
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!last.to_bits())],
        // IPv4-compatible (RFC 4291 2.5.5.1) and IPv4-translated (RFC 2765 2.1), NAT64's own prefix (RFC 6052 2.1), and
        // below any prefix ISATAP (RFC 5214 6.1).
        [0, 0, 0, 0, 0 | 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [_, _, _, _, 0 | 0x200, 0x5efe, ..] => {
            vec![last]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Every notation that an IPv4 address has as an IPv6 one; those of a local NAT64 prefix have its four lengths.
    fn notations(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = ((a << 8) | b, (c << 8) | d);
        let local = |[e, f, g, h, i]: [u16; 5]| Ipv6Addr::new(0x64, 0xff9b, 1, e, f, g, h, i);
        vec![
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            local([high, c, d << 8, 0, 0]),
            local([a, b, low, 0, 0]),
            local([0, a, (b << 8) | c, d << 8, 0]),
            local([0, 0, 0, high, low]),
            Ipv6Addr::new(0x2002, high, low, 1, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !0x0808, !0x0808),
            Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0x200, 0x5efe, high, low),
        ]
    }

    #[test]
    fn addresses_are_told_by_what_they_lead_to() {
        const FINE: (bool, bool) = (false, false);
        const FORBIDDEN: (bool, bool) = (true, false);
        const LOOPBACK: (bool, bool) = (false, true);
        for (text, expected) in [
            ("10.0.0.1", FINE),
            ("127.0.0.1", LOOPBACK),
            ("169.254.169.254", FORBIDDEN),
            ("169.254.170.2", FORBIDDEN),
            ("100.100.100.200", FORBIDDEN),
            ("100.100.100.201", FINE),
            ("192.0.0.192", FORBIDDEN),
            ("168.63.129.16", FORBIDDEN),
            ("0.0.0.0", FORBIDDEN),
            ("224.0.0.1", FORBIDDEN),
            ("255.255.255.255", FORBIDDEN),
            ("::", FORBIDDEN),
            ("::1", LOOPBACK),
            ("fe80::1", FORBIDDEN),
            ("ff02::1", FORBIDDEN),
            ("fd00:ec2::254", FORBIDDEN),
            ("fd00:ec2::255", FINE),
            ("fd20:ce::254", FORBIDDEN),
            ("2001:db8::1", FINE),
            ("fd12:3456::1", FINE),
            ("::ffff:169.254.169.254", FORBIDDEN),
            ("::ffff:127.0.0.1", LOOPBACK),
            ("::ffff:10.0.0.1", FINE),
            ("::169.254.169.254", FORBIDDEN),
            ("::127.0.0.1", LOOPBACK),
            ("::10.0.0.1", FINE),
            ("::ffff:0:169.254.169.254", FORBIDDEN),
            ("64:ff9b::169.254.169.254", FORBIDDEN),
            ("64:ff9b::a9fe:a9fe", FORBIDDEN),
            ("64:ff9b::127.0.0.1", LOOPBACK),
            ("64:ff9b::0.0.0.0", FORBIDDEN),
            ("64:ff9b::192.0.2.33", FINE),
            // Of another network than the well-known prefix.
            ("64:ff9b:2::169.254.169.254", FINE),
            // The lengths 48, 56, 64 and 96, the last also with a prefix of one's own.
            ("64:ff9b:1:a9fe:a9:fe00::", FORBIDDEN),
            ("64:ff9b:1:12a9:fe:a9fe::", FORBIDDEN),
            ("64:ff9b:1:1234:a9:fea9:fe00:0", FORBIDDEN),
            ("64:ff9b:1::169.254.169.254", FORBIDDEN),
            ("64:ff9b:1:1:2:3:169.254.169.254", FORBIDDEN),
            ("64:ff9b:1::127.0.0.1", LOOPBACK),
            ("64:ff9b:1:a00:0:100::", FINE),
            ("64:ff9b:1:ae6:1:100::", FINE),
            ("64:ff9b:1::10.0.0.1", FINE),
            ("2002:a9fe:a9fe::1", FORBIDDEN),
            ("2002:7f00:1::1", LOOPBACK),
            ("2002:c000:221::1", FINE),
            // Teredo: a forbidden server, a forbidden client.
            ("2001:0:a9fe:a9fe::f7f7:f7f7", FORBIDDEN),
            ("2001:0:808:808::5601:5601", FORBIDDEN),
            ("2001:0:808:808::80ff:fffe", LOOPBACK),
            ("2001:0:808:808::f7f7:f7f7", FINE),
            ("2001:db8::5efe:169.254.169.254", FORBIDDEN),
            ("2001:db8::200:5efe:169.254.169.254", FORBIDDEN),
            ("2001:db8::5efe:10.0.0.1", FINE),
        ] {
            let found = (is_forbidden_address(address(text)), is_loopback_address(address(text)));
            assert_eq!(found, expected, "{text}: (forbidden, loopback)");
        }
    }

    #[test]
    fn hosts_are_refused_by_name_and_by_address() {
        for host in ["metadata.google.internal", "Metadata.Google.Internal.", "fe80::1", "64:ff9b::a9fe:a9fe"] {
            assert!(forbidden_host(host).is_some(), "{host}");
        }
        for host in ["metadata.example.com", "10.0.0.1", "::1", "127.0.0.1", "64:ff9b::a00:1"] {
            assert_eq!(forbidden_host(host), None);
        }
    }

    proptest! {
        #[test]
        fn no_notation_leads_round_the_rules(
            v4 in prop_oneof![
                any::<[u8; 2]>().prop_map(|[c, d]| Ipv4Addr::new(169, 254, c, d)),
                any::<[u8; 3]>().prop_map(|[b, c, d]| Ipv4Addr::new(127, b, c, d)),
                prop::sample::select(METADATA_V4.to_vec()),
            ]
        ) {
            for notation in notations(v4) {
                prop_assert!(!is_forbidden_v4(v4) || is_forbidden_address(notation.into()), "{} {}", v4, notation);
                prop_assert!(!v4.is_loopback() || is_loopback_address(notation.into()), "{} {}", v4, notation);
            }
        }
    }
}
