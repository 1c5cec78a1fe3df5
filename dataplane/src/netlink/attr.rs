//! Netlink attributes: a writer into one growing buffer and a reader that borrows.
//!
//! nf_tables numbers are in network order, netlink's own headers in host order.

/// Set on the type of an attribute that holds attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// The bits of a type that are the type.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Length of an attribute's header.
const HEADER: usize = 4;

/// Appends attributes to a buffer.
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn bytes(&mut self, ty: u16, payload: &[u8]) {
        self.header(HEADER + payload.len(), ty);
        self.0.extend_from_slice(payload);
        self.pad();
    }

    /// A string with its final zero.
    pub(crate) fn string(&mut self, ty: u16, text: &str) {
        self.header(HEADER + text.len() + 1, ty);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.pad();
    }

    pub(crate) fn u8(&mut self, ty: u16, number: u8) {
        self.bytes(ty, &[number]);
    }

    pub(crate) fn u16(&mut self, ty: u16, number: u16) {
        self.bytes(ty, &number.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, ty: u16, number: u32) {
        self.bytes(ty, &number.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, ty: u16, number: u64) {
        self.bytes(ty, &number.to_be_bytes());
    }

    /// An attribute that holds what `fill` writes.
    ///
    /// # Panics
    /// Where that is over 64 KiB; callers bound what they nest.
    pub(crate) fn nest(&mut self, ty: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.0.len();
        self.header(HEADER, ty | NLA_F_NESTED);
        fill(&mut Writer(self.0));
        let len = u16::try_from(self.0.len() - start).expect("nested attributes within 64 KiB");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// An attribute that holds attributes which are written already.
    pub(crate) fn nested_bytes(&mut self, ty: u16, payload: &[u8]) {
        self.bytes(ty | NLA_F_NESTED, payload);
    }

    fn header(&mut self, len: usize, ty: u16) {
        let len = u16::try_from(len).expect("an attribute within 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&ty.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One attribute of a received message.
#[derive(Clone, Copy)]
pub(crate) struct Attr<'a> {
    pub(crate) ty: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Attr<'a> {
    pub(crate) fn u16(self) -> Option<u16> {
        Some(u16::from_be_bytes(self.payload.try_into().ok()?))
    }

    pub(crate) fn u32(self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.try_into().ok()?))
    }

    pub(crate) fn u64(self) -> Option<u64> {
        Some(u64::from_be_bytes(self.payload.try_into().ok()?))
    }

    pub(crate) fn u8(self) -> Option<u8> {
        self.payload.first().copied()
    }

    pub(crate) fn string(self) -> Option<&'a str> {
        let end = self.payload.iter().position(|byte| *byte == 0);
        std::str::from_utf8(&self.payload[..end.unwrap_or(self.payload.len())]).ok()
    }

    pub(crate) fn nested(self) -> Attrs<'a> {
        Attrs(self.payload)
    }
}

/// The attributes of a buffer, in order; a torn one ends them.
#[derive(Clone, Copy)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of the type.
    pub(crate) fn get(self, ty: u16) -> Option<Attr<'a>> {
        self.into_iter().find(|attr| attr.ty == ty)
    }

    pub(crate) fn u32(self, ty: u16) -> Option<u32> {
        self.get(ty)?.u32()
    }

    pub(crate) fn string(self, ty: u16) -> Option<&'a str> {
        self.get(ty)?.string()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let header = self.0.get(..HEADER)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let ty = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attr { ty, payload })
    }
}
