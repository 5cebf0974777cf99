from .tokenise import prepare as prepare
