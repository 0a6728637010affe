//! Addresses and networks, as people write them in definitions, settings and rules.
//!
//! What always holds: an IPv4 network in IPv6 clothes (`::ffff:10.0.0.0/104`) is read as the IPv4 network that it is, so
//! that it holds the addresses of clients, which are undressed too.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// An address or a CIDR.
pub fn parse(entry: &str) -> Option<IpNet> {
    let entry = entry.trim();
    entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)).ok().map(canonical)
}

fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let v4 = mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    v4.map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_networks_are_entries() {
        assert!(parse(" 10.0.0.0/8 ").is_some());
        for wrong in ["", "10.0.0.0/33", "10.0.0", "host", "10.0.0.1:80", "10.0.0.0/8,", "::ffff:10.0.0.0/129"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4() {
        for (entry, expected) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
        ] {
            assert_eq!(parse(entry).unwrap().to_string(), expected, "{entry}");
        }
    }
}
