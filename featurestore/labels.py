"""What a definition says for people: who answers for it, how much may rest on it, where to read more. No row, column
or reply depends on it, so it may change at any time.
"""

from __future__ import annotations

#: The attributes of any definition that are labels; a field has no owner and no tier of its own.
LABELS = ("description", "owner", "tier", "tags", "links")

#: What `tier` promises, most first: "critical" is repaired at once, "standard" in working hours, "experimental" may
#: break or go. A service that promises more than a view it reads is named by `plan`.
TIERS = ("critical", "standard", "experimental")
