NUMBERS: dict[str, int]
AUDIT_ARCH: int
