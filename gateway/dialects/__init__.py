"""One module a wire format. Dialects are pure: bytes and plain values in, requests and bytes out."""
