//! How much a policy may ask for.

/// The longest policy text that is read, in bytes.
pub const MAX_TEXT: usize = 2 << 20;

/// Values in a document, arrays and objects included.
pub(crate) const VALUES: usize = 400_000;

/// Entries of `acls` and `grants` together, and of `ssh`.
pub(crate) const RULES: usize = 20_000;

/// Names that one section defines: groups, hosts, IP sets, tags, postures.
pub(crate) const DEFINITIONS: usize = 20_000;

/// Entries of `nodeAttrs`.
pub(crate) const NODE_ATTRIBUTES: usize = 2_000;

/// Members of all groups, once groups in groups are resolved.
pub(crate) const GROUP_MEMBERS: usize = 200_000;

/// Groups inside groups, and IP sets inside IP sets.
pub(crate) const NESTING: usize = 16;

/// Ranges of addresses of all IP sets, once IP sets in IP sets are resolved.
pub(crate) const ADDRESS_RANGES: usize = 100_000;

/// Ranges of addresses in sources and destinations of all rules.
pub(crate) const RULE_RANGES: usize = 1_000_000;

/// Destinations of all rules, each counted once for each range of ports.
pub(crate) const OPENINGS: usize = 1_000_000;

/// Rules that all tests of a policy look at: sources × destinations × rules.
pub(crate) const TEST_STEPS: usize = 20_000_000;
