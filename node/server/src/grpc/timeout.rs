//! The deadlines that callers give: with `grpc-timeout` for a call, in milliseconds for an item of a session.

use tonic::metadata::MetadataMap;

use super::outcome::Failed;

/// For callers that give none.
pub(super) const DEFAULT_MS: u64 = 5_000;
/// No request is kept longer than this, whatever its caller asks for.
const MAX_MS: u64 = 60_000;

/// Milliseconds. A deadline that cannot be read is refused: guessing one might keep a write longer than its caller
/// waits for it.
pub(super) fn timeout_ms(metadata: &MetadataMap) -> Result<u64, Failed> {
    Ok(stream_timeout_ms(metadata)?.map_or(DEFAULT_MS, |ms| ms.min(MAX_MS)))
}

/// Milliseconds, for a call that is many requests and may take as long as its caller waits.
pub(super) fn stream_timeout_ms(metadata: &MetadataMap) -> Result<Option<u64>, Failed> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let ms = value.to_str().ok().and_then(parse_ms);
    ms.map(Some).ok_or_else(|| Failed::invalid("the grpc-timeout header cannot be read"))
}

/// Milliseconds; 0 stands for none given.
pub(super) fn item_timeout_ms(given: u32) -> u64 {
    if given == 0 { DEFAULT_MS } else { u64::from(given).min(MAX_MS) }
}

/// At most eight digits and a unit, by the gRPC protocol.
fn parse_ms(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(number * 3_600_000),
        "M" => Some(number * 60_000),
        "S" => Some(number * 1_000),
        "m" => Some(number),
        "u" => Some(number / 1_000),
        "n" => Some(number / 1_000_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn timeouts_of_every_unit_are_read() {
        let cases = [
            ("2H", Some(7_200_000)),
            ("1M", Some(60_000)),
            ("5S", Some(5_000)),
            ("250m", Some(250)),
            ("250000u", Some(250)),
            ("99999999n", Some(99)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("-5S", None),
            ("123456789m", None),
            ("5é", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_ms(text), expected, "{text}");
        }
    }

    #[test]
    fn a_caller_without_a_deadline_gets_one_and_a_long_one_is_cut() {
        let mut metadata = MetadataMap::new();
        assert_eq!(timeout_ms(&metadata).unwrap(), DEFAULT_MS);
        assert_eq!(stream_timeout_ms(&metadata).unwrap(), None);
        assert_eq!([0, 1, u32::MAX].map(item_timeout_ms), [DEFAULT_MS, 1, MAX_MS]);
        metadata.insert("grpc-timeout", "2H".parse().unwrap());
        assert_eq!(timeout_ms(&metadata).unwrap(), MAX_MS);
        assert_eq!(stream_timeout_ms(&metadata).unwrap(), Some(7_200_000));
        metadata.insert("grpc-timeout", "soon".parse().unwrap());
        assert_eq!(timeout_ms(&metadata).unwrap_err().code, Code::InvalidArgument);
    }
}
