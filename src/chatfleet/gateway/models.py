"""From the name in a request to a model of the fleet."""

import time
from collections.abc import Mapping

from chatfleet.core.errors import InvalidRequest, ModelNotFound, NoWorker, ServingError, model_list
from chatfleet.core.fleet import ModelInfo
from chatfleet.dispatch.view import FleetView
from chatfleet.protocol.common import ModelCard


class ModelNames:
    """The names that clients may use: those of the fleet's models, and the aliases."""

    def __init__(self, view: FleetView, aliases: Mapping[str, str], default: str | None) -> None:
        self._view = view
        self._aliases = aliases
        self._default = default

    def resolve(self, requested: str | None) -> str:
        """The model that is meant, which has a worker now. Raises ModelNotFound, NoWorker, InvalidRequest."""
        name = requested or self._default or self._only_model()
        model = self._aliases.get(name, name)
        if not self._view.serves(model):
            raise self._missing(name, model)
        return model

    def served(self) -> list[str]:
        """Every name that can be asked for now, in alphabetical order."""
        return sorted(self._cards())

    def lost(self) -> list[tuple[str, str]]:
        """Aliases (and the default, called so) whose model cannot be asked now, each with that model."""
        default = {} if self._default is None else {"the default": self._aliases.get(self._default, self._default)}
        wanted = {f"the alias {name}": model for name, model in self._aliases.items()} | default
        return [(name, model) for name, model in wanted.items() if not self._view.serves(model)]

    def cards(self) -> list[ModelCard]:
        return [card for _, card in sorted(self._cards().items())]

    def card(self, name: str) -> ModelCard:
        """Raises ModelNotFound, NoWorker."""
        if (card := self._cards().get(name)) is None:
            raise self._missing(name, self._aliases.get(name, name))
        return card

    def require_models(self) -> None:
        """Raises NoWorker when nothing can be asked."""
        if not self._view.models():
            raise _nothing_served()

    def _missing(self, name: str, model: str) -> ServingError:
        """Why `name`, which stands for `model`, cannot be asked for."""
        if self._view.is_away(model, time.monotonic()):
            return NoWorker(f"No worker of the model `{name}` is there at the moment. Try again shortly.")
        if not self._view.models():
            return _nothing_served()
        return ModelNotFound(name, self.served(), alias_of=model if model != name else None)

    def _cards(self) -> dict[str, ModelCard]:
        models = self._view.models()
        named = models | {alias: models[model] for alias, model in self._aliases.items() if model in models}
        return {name: _card(name, model) for name, model in named.items()}

    def _only_model(self) -> str:
        if (model := self._view.only_model()) is not None:
            return model
        self.require_models()
        raise InvalidRequest(f"You must name a model. Served: {model_list(self.served())}.", param="model")


def _nothing_served() -> NoWorker:
    return NoWorker("No model is served at the moment: no worker is there yet. Try again shortly.")


def _card(name: str, model: ModelInfo) -> ModelCard:
    return ModelCard(
        id=name,
        object="model",
        created=model.created,
        owned_by=model.owned_by,
        max_model_len=model.context_length,
    )
