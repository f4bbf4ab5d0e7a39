from typing import Any, final

@final
class Snapshot:
    def __new__(cls, params: list[Any], kind: type) -> Snapshot: ...
    def matches(self, params: list[Any]) -> bool: ...

__test__: dict[str, str]
