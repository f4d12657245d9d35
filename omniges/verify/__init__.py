"""`omniges verify-shards`: proves a shard folder sound, or says to the byte what is wrong (docs/verify.md)."""

from omniges.verify.findings import VERIFY_CODES, VerifyFinding
from omniges.verify.report import render, write_report
from omniges.verify.run import VerifyResult, VerifySettings, verify

__all__ = ["VERIFY_CODES", "VerifyFinding", "VerifyResult", "VerifySettings", "render", "verify", "write_report"]
