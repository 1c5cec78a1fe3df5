//! Numbers from the kernel's `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`.
//! Each module is an enumeration there; the names drop its prefix.

/// `NFNL_SUBSYS_NFTABLES`, the high byte of every message type.
pub(crate) const SUBSYS: u16 = 10;

/// Batch borders, `NFNL_MSG_BATCH_*`.
pub(crate) mod batch {
    pub(crate) const BEGIN: u16 = 0x10;
    pub(crate) const END: u16 = 0x11;
}

/// `enum nf_tables_msg_types`.
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u8 = 0;
    pub(crate) const GETTABLE: u8 = 1;
    pub(crate) const DELTABLE: u8 = 2;
    pub(crate) const NEWCHAIN: u8 = 3;
    pub(crate) const GETCHAIN: u8 = 4;
    pub(crate) const DELCHAIN: u8 = 5;
    pub(crate) const NEWRULE: u8 = 6;
    pub(crate) const GETRULE: u8 = 7;
    pub(crate) const DELRULE: u8 = 8;
    pub(crate) const NEWSET: u8 = 9;
    pub(crate) const GETSET: u8 = 10;
    pub(crate) const DELSET: u8 = 11;
    pub(crate) const NEWSETELEM: u8 = 12;
    pub(crate) const GETSETELEM: u8 = 13;
    pub(crate) const DELSETELEM: u8 = 14;
    pub(crate) const GETGEN: u8 = 16;
}

/// `enum nft_list_attributes`: elements of every list.
pub(crate) const LIST_ELEM: u16 = 1;

/// `enum nft_gen_attributes`.
pub(crate) mod gen_id {
    pub(crate) const ID: u16 = 1;
}

/// `enum nft_table_attributes`.
pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    /// `NFT_TABLE_F_DORMANT`, of the flags.
    pub(crate) const DORMANT: u32 = 1;
}

/// `enum nft_chain_attributes`.
pub(crate) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const USERDATA: u16 = 12;
}

/// `enum nft_hook_attributes`.
pub(crate) mod hook {
    pub(crate) const HOOKNUM: u16 = 1;
    pub(crate) const PRIORITY: u16 = 2;
}

/// `enum nft_rule_attributes`.
pub(crate) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const USERDATA: u16 = 7;
}

/// `enum nft_set_attributes`.
pub(crate) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const TIMEOUT: u16 = 11;
    pub(crate) const USERDATA: u16 = 13;
    /// Number of elements (6.16).
    pub(crate) const COUNT: u16 = 20;
    /// `NFTA_SET_DESC_SIZE`, inside `DESC`.
    pub(crate) const DESC_SIZE: u16 = 1;
    /// `NFT_DATA_VERDICT`.
    pub(crate) const VERDICT_TYPE: u32 = 0xffff_ff00;
}

/// `enum nft_set_flags`.
pub(crate) mod set_flags {
    pub(crate) const INTERVAL: u32 = 0x4;
    pub(crate) const MAP: u32 = 0x8;
    pub(crate) const TIMEOUT: u32 = 0x10;
    pub(crate) const EVAL: u32 = 0x20;
}

/// `enum nft_set_elem_list_attributes`.
pub(crate) mod elem_list {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const SET: u16 = 2;
    pub(crate) const ELEMENTS: u16 = 3;
}

/// `enum nft_set_elem_attributes`.
pub(crate) mod elem {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const USERDATA: u16 = 6;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub(crate) const INTERVAL_END: u32 = 1;
}

/// `enum nft_data_attributes`, `enum nft_verdict_attributes`.
pub(crate) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
}

/// Verdict codes: `NF_*` and `enum nft_verdicts`.
pub(crate) mod verdict {
    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// `enum nft_expr_attributes`.
pub(crate) mod expr {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
}

/// Registers, `enum nft_registers`.
pub(crate) mod reg {
    pub(crate) const VERDICT: u32 = 0;
    /// `NFT_REG32_00`: the first of sixteen 4-byte registers.
    pub(crate) const FIRST: u32 = 8;
}

/// `enum nft_payload_attributes`, `enum nft_payload_bases`.
pub(crate) mod payload {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const BASE: u16 = 2;
    pub(crate) const OFFSET: u16 = 3;
    pub(crate) const LEN: u16 = 4;
    pub(crate) const SREG: u16 = 5;
    pub(crate) const CSUM_TYPE: u16 = 6;
    pub(crate) const CSUM_OFFSET: u16 = 7;
    pub(crate) const CSUM_FLAGS: u16 = 8;
    pub(crate) const LINK: u32 = 0;
    pub(crate) const NETWORK: u32 = 1;
    pub(crate) const TRANSPORT: u32 = 2;
    /// `NFT_PAYLOAD_CSUM_NONE`, `NFT_PAYLOAD_CSUM_INET`.
    pub(crate) const CSUM_NONE: u32 = 0;
    pub(crate) const CSUM_INET: u32 = 1;
    /// `NFT_PAYLOAD_L4CSUM_PSEUDOHDR`.
    pub(crate) const L4CSUM_PSEUDOHDR: u32 = 1;
}

/// `enum nft_meta_attributes`, `enum nft_meta_keys`.
pub(crate) mod meta {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const KEY: u16 = 2;
    pub(crate) const PROTOCOL: u32 = 1;
    pub(crate) const IIF: u32 = 4;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const OIFNAME: u32 = 7;
    pub(crate) const NFPROTO: u32 = 15;
    pub(crate) const L4PROTO: u32 = 16;
}

/// `enum nft_ct_attributes`, `enum nft_ct_keys`.
pub(crate) mod ct {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const KEY: u16 = 2;
    pub(crate) const DIRECTION: u16 = 3;
    pub(crate) const SREG: u16 = 4;
    pub(crate) const STATE: u32 = 0;
    pub(crate) const KEY_DIRECTION: u32 = 1;
    pub(crate) const STATUS: u32 = 2;
    pub(crate) const MARK: u32 = 3;
    pub(crate) const PROTO_DST: u32 = 12;
    pub(crate) const SRC_IP: u32 = 19;
    pub(crate) const DST_IP: u32 = 20;
    pub(crate) const SRC_IP6: u32 = 21;
    pub(crate) const DST_IP6: u32 = 22;
    /// `IP_CT_DIR_ORIGINAL`.
    pub(crate) const ORIGINAL: u8 = 0;
}

/// `enum nft_fib_attributes`.
pub(crate) mod fib {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const RESULT: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    /// `NFT_FIB_RESULT_ADDRTYPE`.
    pub(crate) const ADDRTYPE: u32 = 3;
    /// `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`.
    pub(crate) const SADDR: u32 = 1;
    pub(crate) const DADDR: u32 = 2;
}

/// `enum nft_ng_attributes`.
pub(crate) mod numgen {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const MODULUS: u16 = 2;
    pub(crate) const TYPE: u16 = 3;
    pub(crate) const OFFSET: u16 = 4;
    pub(crate) const INCREMENTAL: u32 = 0;
    pub(crate) const RANDOM: u32 = 1;
}

/// `enum nft_hash_attributes`.
pub(crate) mod hash {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const DREG: u16 = 2;
    pub(crate) const LEN: u16 = 3;
    pub(crate) const MODULUS: u16 = 4;
    pub(crate) const SEED: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const JENKINS: u32 = 0;
}

/// `enum nft_bitwise_attributes`.
pub(crate) mod bitwise {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const DREG: u16 = 2;
    pub(crate) const LEN: u16 = 3;
    pub(crate) const MASK: u16 = 4;
    pub(crate) const XOR: u16 = 5;
}

/// `enum nft_cmp_attributes`, `enum nft_cmp_ops`.
pub(crate) mod cmp {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const OP: u16 = 2;
    pub(crate) const DATA: u16 = 3;
    pub(crate) const EQ: u32 = 0;
    pub(crate) const NEQ: u32 = 1;
    pub(crate) const LTE: u32 = 3;
    pub(crate) const GTE: u32 = 5;
}

/// `enum nft_immediate_attributes`.
pub(crate) mod immediate {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const DATA: u16 = 2;
}

/// `enum nft_lookup_attributes`.
pub(crate) mod lookup {
    pub(crate) const SET: u16 = 1;
    pub(crate) const SREG: u16 = 2;
    pub(crate) const DREG: u16 = 3;
    pub(crate) const FLAGS: u16 = 5;
    /// `NFT_LOOKUP_F_INV`.
    pub(crate) const INV: u32 = 1;
}

/// `enum nft_dynset_attributes`, `enum nft_dynset_ops`.
pub(crate) mod dynset {
    pub(crate) const SET_NAME: u16 = 1;
    pub(crate) const OP: u16 = 3;
    pub(crate) const SREG_KEY: u16 = 4;
    pub(crate) const SREG_DATA: u16 = 5;
    pub(crate) const TIMEOUT: u16 = 6;
    pub(crate) const EXPR: u16 = 7;
    pub(crate) const UPDATE: u32 = 1;
}

/// `enum nft_nat_attributes`, `enum nft_nat_types`.
pub(crate) mod nat {
    pub(crate) const TYPE: u16 = 1;
    pub(crate) const FAMILY: u16 = 2;
    pub(crate) const REG_ADDR_MIN: u16 = 3;
    pub(crate) const REG_PROTO_MIN: u16 = 5;
    pub(crate) const DNAT: u32 = 1;
}

/// `enum nft_masq_attributes`.
pub(crate) mod masq {
    pub(crate) const FLAGS: u16 = 1;
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    pub(crate) const RANDOM_FULLY: u32 = 0x10;
}

/// `enum nft_reject_attributes`, `enum nft_reject_types`.
pub(crate) mod reject {
    pub(crate) const TYPE: u16 = 1;
    pub(crate) const ICMP_CODE: u16 = 2;
    pub(crate) const TCP_RST: u32 = 1;
    pub(crate) const ICMPX: u32 = 2;
    pub(crate) const PORT_UNREACH: u8 = 1;
    pub(crate) const ADMIN_PROHIBITED: u8 = 3;
}

/// `enum nft_limit_attributes`.
pub(crate) mod limit {
    pub(crate) const RATE: u16 = 1;
    pub(crate) const UNIT: u16 = 2;
    pub(crate) const BURST: u16 = 3;
    pub(crate) const TYPE: u16 = 4;
    /// `NFT_LIMIT_PKTS`.
    pub(crate) const PACKETS: u32 = 0;
}

/// `enum nft_counter_attributes`.
pub(crate) mod counter {
    pub(crate) const PACKETS: u16 = 2;
}

/// `enum nft_log_attributes`.
pub(crate) mod log {
    pub(crate) const GROUP: u16 = 1;
    pub(crate) const PREFIX: u16 = 2;
    pub(crate) const SNAPLEN: u16 = 3;
}

/// Types of the entries of a `USERDATA` attribute, as libnftnl defines them.
pub(crate) mod udata {
    /// `NFTNL_UDATA_{RULE,SET_ELEM,CHAIN}_COMMENT`.
    pub(crate) const COMMENT: u8 = 0;
    /// `NFTNL_UDATA_SET_KEYBYTEORDER`.
    pub(crate) const SET_KEYBYTEORDER: u8 = 0;
    /// `NFTNL_UDATA_SET_COMMENT`.
    pub(crate) const SET_COMMENT: u8 = 7;
}
