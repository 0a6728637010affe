//! Shares of calls among servers.

use super::UpstreamAddress;

/// A server, and how often it is called beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedServer {
    /// Where it is.
    pub address: UpstreamAddress,
    /// Its share of the calls by that of the others; 0: none.
    pub weight: u8,
}

/// Largest weight of a server.
pub const MAX_WEIGHT: u8 = 100;
/// Most servers that may have weights.
pub const MAX_WEIGHTED: usize = 64;

/// The weights of this many servers.
///
/// # Errors
/// What is wrong with them, to be read after the name of the member that they are in.
pub fn read_weights(given: &[i32], servers: usize) -> Result<Vec<u8>, String> {
    if given.len() != servers {
        return Err(format!("must have one weight for each server: {servers}, not {}", given.len()));
    }
    if servers > MAX_WEIGHTED {
        return Err(format!("can be given for up to {MAX_WEIGHTED} servers"));
    }
    let read = |weight: &i32| u8::try_from(*weight).ok().filter(|weight| *weight <= MAX_WEIGHT);
    let weights: Option<Vec<u8>> = given.iter().map(read).collect();
    let weights = weights.ok_or_else(|| format!("must be 0 to {MAX_WEIGHT} each"))?;
    if weights.iter().all(|weight| *weight == 0) {
        return Err("must not all be 0: no server would be called".to_owned());
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_or_told_what_is_wrong() {
        assert_eq!(read_weights(&[3, 0, 100], 3), Ok(vec![3, 0, 100]));
        for (given, servers, part) in [
            (&[1, 2][..], 3, "one weight for each server: 3, not 2"),
            (&[1], 0, "each server: 0, not 1"),
            (&[], 0, "all be 0"),
            (&[0, 0], 2, "all be 0"),
            (&[1, 101], 2, "0 to 100"),
            (&[1, -1], 2, "0 to 100"),
            (&[256], 1, "0 to 100"),
            (&[1; 65], 65, "up to 64"),
        ] {
            let error = read_weights(given, servers).unwrap_err();
            assert!(error.contains(part), "{given:?}: {error}");
        }
    }
}
