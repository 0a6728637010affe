//! Sets of networks that addresses are looked up in. The time of a look-up doesn't grow with the set.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;

/// Networks, as [`doorman_crds::networks::parse`] reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    members: HashSet<IpNet>,
    /// The prefix lengths that occur.
    v4: BTreeSet<u8>,
    v6: BTreeSet<u8>,
}

impl Networks {
    /// Is the address in one of them?
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let of_length = |length: &u8| IpNet::new(address, *length).ok().map(|net| net.trunc());
        lengths.iter().filter_map(of_length).any(|net| self.members.contains(&net))
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        let mut set = Self::default();
        for net in nets.into_iter().map(|net| net.trunc()) {
            let lengths = if net.addr().is_ipv4() { &mut set.v4 } else { &mut set.v6 };
            lengths.insert(net.prefix_len());
            set.members.insert(net);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use doorman_crds::networks::parse;
    use proptest::prelude::*;

    use super::*;

    fn set(entries: &[&str]) -> Networks {
        entries.iter().map(|entry| parse(entry).unwrap()).collect()
    }

    #[test]
    fn addresses_and_networks_of_both_families_are_found() {
        let set = set(&["10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "::ffff:203.0.113.0/120"]);
        for inside in ["10.255.0.1", "192.0.2.7", "2001:db8::1", "203.0.113.9", "::ffff:10.0.0.1"] {
            assert!(set.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "203.0.114.1", "::1"] {
            assert!(!set.contains(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn the_whole_of_a_family_is_not_the_other_one() {
        assert!(set(&["0.0.0.0/0"]).contains("203.0.113.9".parse().unwrap()));
        assert!(!set(&["0.0.0.0/0"]).contains("2001:db8::1".parse().unwrap()));
        assert!(!set(&["::/0"]).contains("203.0.113.9".parse().unwrap()));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few bits, so that they meet.
        prop_oneof![
            (0..8_u32).prop_map(|bits| IpAddr::V4((bits << 29 | bits).into())),
            (0..8_u128).prop_map(|bits| IpAddr::V6((bits << 125 | 1 << 64 | bits).into())),
        ]
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128_u8).prop_map(|(address, length)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(longest)).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_set_contains_what_one_of_its_members_contains(
            nets in prop::collection::vec(network(), 0..12), address in address(),
        ) {
            let expected = nets.iter().any(|net| net.contains(&address));
            prop_assert_eq!(nets.into_iter().collect::<Networks>().contains(address), expected);
        }
    }
}
