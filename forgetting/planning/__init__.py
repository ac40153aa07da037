"""What training a model needs, before it is trained: memory per device, and floating-point operations.

``shape`` reads a model's configuration and counts its parameters (no weights are loaded), ``activations`` runs two
training steps of it without numbers, ``stored`` knows what each mitigation keeps, ``memory`` adds up.
"""
