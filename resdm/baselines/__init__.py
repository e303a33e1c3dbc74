"""The methods that ResDM is compared with."""
